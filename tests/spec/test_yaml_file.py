"""YAML specifications and assignments: what they mean and how they are refused."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.strict_yaml import MAX_BYTES, load_spec_file, overrides_from_assignments


def _load(folder: Path, text: str | bytes) -> dict[str, Any]:
    path = folder / "spec.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_spec_file(path)


def _refused(folder: Path, text: str | bytes) -> str:
    with pytest.raises(MultigrainError) as caught:
        _load(folder, text)
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    return caught.value.message


def test_a_file_gives_nested_fields(tmp_path: Path) -> None:
    text = "preset: digits-demo\nschedule:\n  epochs: 3\n  learning_rate: {milestones: [1, 2.5]}\n"
    assert _load(tmp_path, text) == {
        "preset": "digits-demo",
        "schedule": {"epochs": 3, "learning_rate": {"milestones": [1, 2.5]}},
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\ufeff"])
def test_an_empty_file_sets_nothing(tmp_path: Path, text: str) -> None:
    assert _load(tmp_path, text) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5E3", 5000.0),
        ("-1.5e+2", -150.0),
        (".5", 0.5),
        ("3.", 3.0),
        (".inf", math.inf),
        ("010", 10),
        ("-7", -7),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("none", "none"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("'3'", "3"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        (".", "."),
    ],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    loaded = _load(tmp_path, f"a: {text}\n")["a"]
    assert loaded == value
    assert type(loaded) is type(value)


def test_a_key_set_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    message = _refused(tmp_path, "schedule:\n  epochs: 1\n  max_steps: 2\n  epochs: 3\n")
    assert message == "spec.yaml line 4, column 3: 'epochs' is set twice, first in line 2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\nb: 2\n", ["spec.yaml line 2"]),
        ("a: &x {b: 1}\nc: *x\n", ["line 2", "aliases"]),
        ("a: {<<: 1, <<: 2}\n", ["set twice"]),
        ("1: 2\n", ["line 1", "must be a word"]),
        ("? [a]\n: 1\n", ["must be a word"]),
        ("- a\n", ["must hold fields"]),
        ("just text\n", ["must hold fields"]),
        ("a: !!python/object/apply:os.system ['true']\n", ["line 1"]),
        ("a: !!int x\n", ["malformed"]),
        ("a: \x01\n", ["cannot be read"]),
        (b"a: \xff\n", ["UTF-8"]),
        ("a: 1\n---\nb: 2\n", ["line 2"]),
        ("a: " + "[" * 5000, ["spec.yaml"]),
    ],
)
def test_what_is_no_specification_is_refused_with_the_place(
    tmp_path: Path, text: str | bytes, words: list[str]
) -> None:
    message = _refused(tmp_path, text)
    for word in words:
        assert word in message
    assert "\n" not in message


def test_a_file_that_is_far_too_large_is_refused(tmp_path: Path) -> None:
    assert "bytes" in _refused(tmp_path, b"#" * (MAX_BYTES + 1))


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(MultigrainError, match="cannot read") as caught:
        load_spec_file(tmp_path / name)
    assert caught.value.kind is ErrorKind.NOT_FOUND


def test_any_bytes_are_either_read_or_refused_in_one_line(tmp_path: Path) -> None:
    rng = random.Random(7)
    alphabet = "ab: -\n[]{}#&*!|>'\"%@`,?01.e~<\t\\é\0\x85"
    refusals = []
    for _ in range(1500):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(24)))
        try:
            loaded = _load(tmp_path, text)
        except MultigrainError as error:
            refusals.append(error.message)
        else:
            assert isinstance(loaded, dict)
    assert len(refusals) > 100
    assert [message for message in refusals if "\n" in message] == []


def test_assignments_become_nested_overrides() -> None:
    assert overrides_from_assignments(
        [
            "schedule.epochs=3",
            "spec.optimizer.weight_decay=1e-4",
            "schedule.learning_rate.milestones=[30, 60]",
            "dataset.train_path=/data/a=b",
            "initial_weights=",
            "preset = digits-demo",
        ]
    ) == {
        "schedule": {"epochs": 3, "learning_rate": {"milestones": [30, 60]}},
        "optimizer": {"weight_decay": 1e-4},
        "dataset": {"train_path": "/data/a=b"},
        "initial_weights": "",
        "preset": "digits-demo",
    }


def test_the_later_of_two_assignments_wins() -> None:
    assert overrides_from_assignments(["a.b=1", "a.b=2"]) == {"a": {"b": 2}}


@pytest.mark.parametrize(
    "assignments",
    [
        ["epochs"],
        ["=3"],
        ["a..b=3"],
        [".a=3"],
        ["a b=3"],
        ["a={b: 1}"],
        ["a=[1"],
        ["a=1", "a.b=2"],
        ["a.b=2", "a=1"],
    ],
)
def test_an_assignment_that_cannot_be_read_is_refused_by_its_text(assignments: list[str]) -> None:
    with pytest.raises(MultigrainError) as caught:
        overrides_from_assignments(assignments)
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert f"'{assignments[-1]}'" in caught.value.message
