"""Images that crashed an engine."""

from __future__ import annotations

import hashlib

import pytest

from multigrain.errors import ErrorKind
from multigrain_server.engines.images import Quarantine


def test_only_an_image_in_quarantine_is_refused_with_its_hash() -> None:
    quarantine = Quarantine()
    digest = quarantine.add(b"crash")
    assert digest == hashlib.sha256(b"crash").hexdigest()
    error = quarantine.refusal(b"crash")
    assert error is not None
    assert error.kind is ErrorKind.IMAGE_HARMFUL
    assert digest in error.message
    assert quarantine.refusal(b"other") is None


def test_the_newest_1024_images_are_remembered() -> None:
    quarantine = Quarantine()
    for number in range(1024):
        quarantine.add(b"%d" % number)
    quarantine.add(b"0")  # again, and therefore the newest
    quarantine.add(b"one more")
    assert quarantine.refusal(b"1") is None
    assert all(quarantine.refusal(image) for image in (b"0", b"2", b"1023", b"one more"))


def test_nothing_is_hashed_while_the_quarantine_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashlib, "sha256", None)
    assert Quarantine().refusal(b"large") is None


class Surroundings:
    """The clock in seconds, and the memory limit in bytes."""

    def __init__(self) -> None:
        self.seconds, self.memory = 1000.0, 1 << 30

    def quarantine(self) -> Quarantine:
        return Quarantine(lambda: self.memory, lambda: self.seconds)


def test_an_image_without_enough_memory_is_refused_with_the_limit_and_what_to_do() -> None:
    quarantine = Surroundings().quarantine()
    digest = quarantine.add_out_of_memory(b"large", "its cgroup may use 480 MiB")
    error = quarantine.refusal(b"large")
    assert error is not None
    assert error.kind is ErrorKind.OVERLOADED
    assert error.retry_after is None
    assert digest == hashlib.sha256(b"large").hexdigest()
    for text in (
        digest,
        "not enough memory",
        "its cgroup may use 480 MiB",
        "raise the memory limit",
        "serving.max_image_pixels",
        "for 5 minutes",
    ):
        assert text in error.message
    assert "do not send" not in error.message
    assert quarantine.refusal(b"other") is None


@pytest.mark.parametrize(("seconds", "memory"), [(300, 1 << 30), (0, 2 << 30), (0, 1 << 29)])
def test_that_refusal_ends_after_minutes_or_when_the_memory_limit_changes(
    seconds: float, memory: int
) -> None:
    around = Surroundings()
    quarantine = around.quarantine()
    quarantine.add_out_of_memory(b"large", "out of memory")
    quarantine.add(b"crash")
    around.seconds += 299
    assert quarantine.refusal(b"large")
    around.seconds, around.memory = 1000 + seconds, memory
    assert quarantine.refusal(b"large") is None
    assert quarantine.refusal(b"crash")
