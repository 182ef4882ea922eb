"""The command that prints a completion script for a shell."""

from __future__ import annotations

import argparse

from multigrain_client.cli.arguments import OK, Command, Context, Result
from multigrain_client.errors import MissingPackage

_SHELLS = ("bash", "zsh", "tcsh")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=_SHELLS, help="add its output to the shell's start file")


def _completion(context: Context) -> int:
    # Imported here: the parser has this command too.
    from multigrain_client.cli.main import build_parser

    try:
        import shtab
    except ImportError as error:
        raise MissingPackage(
            "shell completion needs shtab: pip install 'multigrain[cli]'"
        ) from error
    script = shtab.complete(build_parser(), context.arguments.shell)
    context.output.data({"script": script})
    for line in script.splitlines():
        context.output.line(line.expandtabs())
    return OK


COMMANDS = (
    Command(
        "completion", "print the completion script of a shell", _configure, _completion,
        Result.OUTPUT,
    ),
)  # fmt: skip
