"""Commands and code of every page have arguments, fields and syntax that exist; nothing is run."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from tests.docs.blocks import blocks
from tools.docs.limits import item_type
from tools.docs.markdown import ROOT
from tools.docs.product import (
    EvaluationSpec,
    ExportSpec,
    TrainingSpec,
    client_parser,
    server_parser,
)

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SPECIFICATIONS = {"train": TrainingSpec, "evaluate": EvaluationSpec, "export": ExportSpec}
INLINE = re.compile(r"`(multigrain(?:-server)? [^`]+)`")
PROGRAM = re.compile(r"^(?:.*/)?(multigrain(?:-server)?)$")
SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
# What ends a command in a line of shell, and so begins the next one.
SEPARATORS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "(", ")"}


def fields(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """The path of every field and group of a specification."""
    for name, info in model.model_fields.items():
        yield f"{path}{name}"
        kind = info.annotation
        for inner in (kind, item_type(info)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from fields(inner, f"{path}{name}.")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of ours in some shell text."""
    for line in text.replace("\\\n", " ").splitlines():
        for inner in SUBSTITUTION.findall(line):
            yield from commands(inner)
        lexer = shlex.shlex(SUBSTITUTION.sub("VALUE", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in (*lexer, ";"):
            if word in SEPARATORS:
                if command and (program := PROGRAM.match(command[0])):
                    yield [program[1], *command[1:]]
                command = []
            elif command or not re.match(r"\w+=", word):
                command.append(word)


def check(words: list[str]) -> None:
    """Fails for a command, an option or a field that does not exist."""
    program, *arguments = words
    if program == "multigrain-server":
        arguments = [word for word in arguments if word != "doctor"]
        _, unknown = server_parser().parse_known_args(arguments)
        assert unknown == [], words
        return
    if len(arguments) == 1:  # named in a text, without what it takes
        arguments.append("--help")
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
            client_parser().parse_args(arguments)
        assert ended.value.code == 0, words
        return
    parsed = client_parser().parse_args(arguments)
    if parsed.command in SPECIFICATIONS:
        known = set(fields(SPECIFICATIONS[parsed.command]))
        assert {key for key, _ in parsed.settings or ()} <= known, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    inline = [" ".join(text.split()) for text in INLINE.findall(page.read_text())]
    for text in [*(b.text for b in blocks(page) if b.language == "shell"), *inline]:
        for words in commands(text):
            try:
                check(words)
            except SystemExit:
                pytest.fail(f"{page.name}: {shlex.join(words)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_can_be_parsed(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            yaml.safe_load(block.text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "multigrain load x && multigrain embed *.png",
            [["multigrain", "load", "x"], ["multigrain", "embed", "*.png"]],
        ),
        ("job=$(multigrain train --watch | jq -r .id)", [["multigrain", "train", "--watch"]]),
        (".venv/bin/multigrain-server --data-dir d &", [["multigrain-server", "--data-dir", "d"]]),
        ("useradd --home /var/lib/multigrain multigrain", []),
        ("MULTIGRAIN_TOKEN=x multigrain jobs --ca c", [["multigrain", "jobs", "--ca", "c"]]),
    ],
)
def test_commands_are_found(text: str, expected: list[list[str]]) -> None:
    assert list(commands(text)) == expected


@pytest.mark.parametrize(
    "text", ["multigrain trian", "multigrain train --sett a=1", "multigrain-server --no-such-flag"]
)
def test_wrong_commands_fail(text: str) -> None:
    (words,) = commands(text)
    with pytest.raises((SystemExit, AssertionError)):
        check(words)


def test_wrong_fields_fail() -> None:
    (words,) = commands("multigrain train --set schedule.epoch=3")
    with pytest.raises(AssertionError):
        check(words)
