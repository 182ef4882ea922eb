from __future__ import annotations

import runpy
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["train", "{folder}", "--server", "nowhere"], "it has no port"),
        (["search", "{folder}", "{folder}/query.png", "--server", "nowhere"], "it has no port"),
        (["search", "{folder}/missing", "{folder}/query.png"], "No such file or directory"),
    ],
)
def test_an_example_that_cannot_run_says_why_in_one_line(
    arguments: list[str],
    problem: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = str(tmp_path_factory.mktemp("images"))
    command = [argument.replace("{folder}", folder) for argument in arguments]
    monkeypatch.setattr("sys.argv", command)
    # Of another test: runpy warns when it runs a module that is imported already.
    monkeypatch.delitem(sys.modules, f"examples.{command[0]}", raising=False)
    with pytest.raises(SystemExit) as exit:
        runpy.run_module(f"examples.{command[0]}", run_name="__main__")
    assert str(exit.value).startswith("error: ")
    assert problem in str(exit.value)
