"""Strict YAML: what it reads and how it refuses."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from multigrain.strict_yaml import MAX_BYTES, MAX_DEPTH, YamlError, load_yaml_file, parse_yaml
from tests.hostile_files import NEVER_READ, alarm, put


def _load(folder: Path, text: str | bytes) -> dict[str, Any]:
    path = folder / "spec.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_yaml_file(path)


def _refused(folder: Path, text: str | bytes) -> str:
    with pytest.raises(YamlError) as caught:
        _load(folder, text)
    return str(caught.value)


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
        ("-7", -7),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("0", 0),
        ("0.5", 0.5),
        ("'010'", "010"),
        ("!!str 010", "010"),
        ("run_1", "run_1"),
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
    "number",
    ["010", "-010", "00", "1_6", "1_000", "+1_0", "0_1", "1_0.5", "1_0e3", "1.5_0", ".5_0"],
)
def test_a_number_that_yaml_versions_read_differently_is_refused(
    tmp_path: Path, number: str
) -> None:
    message = _refused(tmp_path, f"schedule:\n  epochs: {number}\n")
    assert message.startswith(f"spec.yaml line 2, column 11: 'epochs': {number} is ambiguous")
    assert "line 1, column 5: 010 is ambiguous" in _refused(tmp_path, "a: [010]")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: &x 1\nb: *x\n", "line 1, column 4: 'a': anchors"),
        ("a: &x {b: 1}\n", "line 1, column 4: 'a': anchors"),
        ("a: 1\nb: *x\n", "line 2, column 4: 'b': anchors"),
    ],
)
def test_anchors_and_aliases_are_refused_with_their_key(
    tmp_path: Path, text: str, where: str
) -> None:
    assert where in _refused(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\nb: 2\n", ["spec.yaml line 2"]),
        ("a: &x {b: 1}\nc: *x\n", ["line 1", "aliases"]),
        ("a: {<<: 1, <<: 2}\n", ["set twice"]),
        ("1: 2\n", ["line 1", "must be a string"]),
        ("? [a]\n: 1\n", ["must be a string"]),
        ("- a\n", ["must hold fields"]),
        ("just text\n", ["must hold fields"]),
        ("a: !!python/object/apply:os.system ['true']\n", ["line 1, column 4", "tags"]),
        ("a: !!int x\n", ["line 1, column 4", "tags"]),
        ("a: !!bool maybe\n", ["tags"]),
        ("a: !!timestamp x\n", ["tags"]),
        ("a: !!float ''\n", ["tags"]),
        ("a: !!float 1:30\n", ["tags"]),
        ("a: [!!int 1_0]\n", ["line 1, column 5", "tags"]),
        ("a: !!set {b}\n", ["tags"]),
        ("!!binary a: 1\n", ["line 1, column 1", "tags"]),
        ("a: !own 1\n", ["tags"]),
        ("a: ! 010\n", ["tags"]),
        ("a: \x01\n", ["cannot be read"]),
        (b"a: \xff\n", ["UTF-8"]),
        ("a: 1\n---\nb: 2\n", ["line 2", "expected a single document", "another"]),
        ("a: " + "[" * 5000, ["spec.yaml", "nested too deeply"]),
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
def test_a_file_that_cannot_be_read_raises_the_error_of_the_system(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(OSError, match=r"No such file|Is a directory"):
        load_yaml_file(tmp_path / name)


def test_any_bytes_are_either_read_or_refused_in_one_line(tmp_path: Path) -> None:
    rng = random.Random(7)
    alphabet = "ab: -\n[]{}#&*!|>'\"%@`,?01.e~<\t\\é\0\x85"
    refusals = []
    for _ in range(1500):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(24)))
        try:
            loaded = _load(tmp_path, text)
        except YamlError as error:
            refusals.append(str(error))
        else:
            assert isinstance(loaded, dict)
    assert len(refusals) > 100
    assert [message for message in refusals if "\n" in message] == []


DEPTH = 100_000


@pytest.mark.parametrize(
    "text",
    [
        "[" * DEPTH,
        "{a: " * DEPTH,
        "- " * 1000,
        "a: " + "[" * DEPTH + "]" * DEPTH,
        "\n".join(" " * level + "a:" for level in range(900)),
        "[{a: " * DEPTH,
        "? " * 1000,
    ],
)
def test_deep_nesting_is_refused_before_it_is_read(text: str) -> None:
    """PyYAML's scanner takes a time quadratic in the depth: seconds, without the limit."""
    with pytest.raises(YamlError, match=r"nested too deeply, more than 50 levels|line 1"):
        parse_yaml(text, "x")


def test_ordinary_nesting_is_read() -> None:
    assert parse_yaml("[" * 49 + "]" * 49, "x")
    with pytest.raises(YamlError, match="nested too deeply, more than 50 levels"):
        parse_yaml("[" * 51 + "]" * 51, "x")


@pytest.mark.parametrize("kind", NEVER_READ)
def test_hostile_files_are_refused(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "x.yaml", kind)
    with alarm(), pytest.raises((OSError, YamlError)):
        load_yaml_file(tmp_path / "x.yaml")


def test_a_pipe_that_is_open_already_is_read() -> None:
    """A shell's ``--config <(...)`` is /dev/fd/63."""
    reader, writer = os.pipe()
    os.write(writer, b"a: 1\n")
    os.close(writer)
    assert load_yaml_file(Path(f"/dev/fd/{reader}")) == {"a": 1}
    os.close(reader)


@pytest.mark.parametrize("bracket", ["[", "{", "{a: ", "[[],"])
def test_what_is_nested_too_deeply_is_not_scanned_ahead(
    bracket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned = []
    scan = yaml.scanner.Scanner.fetch_flow_collection_start

    def counted(scanner: Any, token: Any) -> None:
        scanned.append(token)
        scan(scanner, token)

    monkeypatch.setattr(yaml.scanner.Scanner, "fetch_flow_collection_start", counted)
    with pytest.raises(YamlError, match="nested too deeply, more than 50 levels"):
        parse_yaml(bracket * 5000, "spec.yaml")
    assert len(scanned) <= 2 * MAX_DEPTH


def test_brackets_in_strings_are_no_levels() -> None:
    text = "[" * 200
    assert parse_yaml(f"a: '{text}'\nb: [[1], {{c: \"{text}\"}}]", "x")["a"] == text
