"""Readers of bytes from elsewhere are given bytes that are nearly right."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.budget import rounds, seed
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import Target, targets

NAMES = (
    *("image", "bundle manifest", "bundle archive", "whitening", "reference"),
    *("checkpoint manifest", "weights", "specification", "events", "tokens"),
    *("configuration", "frames", "job messages", "archive headers", "decode cost"),
    "infer request",
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    found = targets(tmp_path_factory.mktemp("fuzz"))
    assert set(found) == set(NAMES)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_are_refused_and_never_crash_or_hang(
    readers: dict[str, Target], name: str
) -> None:
    target, chance = readers[name], random.Random(seed())
    for example in target.corpus:
        target(example)
    for _ in rounds(60):
        data = mutated(chance.choice(target.corpus), chance)
        try:
            target(data)
        except Exception as error:
            pytest.fail(f"{name}: {error!r} of {data[:2000]!r}")
