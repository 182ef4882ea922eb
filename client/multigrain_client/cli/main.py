"""Parses the command line, runs the command, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from multigrain import __version__
from multigrain_client.cli import images, jobs, models
from multigrain_client.cli.arguments import (
    FAILED,
    INTERRUPTED,
    OK,
    USAGE,
    Command,
    Context,
    add_shared_options,
    shared_defaults,
)
from multigrain_client.cli.output import Output
from multigrain_client.errors import InvalidRequest, JobFailed, MultigrainClientError

COMMANDS: tuple[Command, ...] = (*jobs.COMMANDS, *models.COMMANDS, *images.COMMANDS)

_COMMAND_OF = {command.call: command.name for command in COMMANDS if command.call}
_CALL = re.compile(rf"\b({'|'.join(_COMMAND_OF)})\b")

EPILOG = """\
exit codes: 0 success, 1 the job or the call failed, 2 usage error, 130 interrupted

examples:
  multigrain train --preset digits-demo --train digits/train --watch
  multigrain evaluate --job JOB --dataset digits/val --watch
  multigrain export --job JOB --model-name digits --watch
  multigrain load digits && multigrain embed *.png --out vectors.npy
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="multigrain",
        description="Trains, evaluates, exports and serves image-embedding models on a server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"multigrain {__version__}")
    # Before the command or after it; an option after it wins.
    add_shared_options(parser)
    parser.set_defaults(**shared_defaults())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    add_shared_options(shared)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name, help=command.help, description=command.help, parents=[shared]
        )
        command.configure(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit code (see EPILOG)."""
    parsed = build_parser().parse_args(arguments)
    try:
        code: int = parsed.run(Context(parsed, Output(sys.stdout, as_json=parsed.json)))
        sys.stdout.flush()
        return code
    except MultigrainClientError as error:
        print(f"multigrain {parsed.command}: {_one_line(error)}", file=sys.stderr)
        if isinstance(error, JobFailed) and error.job.error.log_tail:
            print(error.job.error.log_tail.rstrip(), file=sys.stderr)
        # An error that the client found by itself, before any call, is a usage error.
        return USAGE if isinstance(error, InvalidRequest) and error.code is None else FAILED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has exited; Python would report it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        # From files named on the command line: calls raise errors of the client.
        where = f"{error.filename}: " if error.filename else ""
        print(f"multigrain {parsed.command}: {where}{error.strerror or error}", file=sys.stderr)
        return FAILED


def _one_line(error: MultigrainClientError) -> str:
    text = " ".join(str(error).split())
    if error.kind:  # from the server, which mentions RPCs
        text = _CALL.sub(lambda call: f"`multigrain {_COMMAND_OF[call[0]]}`", text)
    notes = []
    if error.retry_after is not None:
        notes.append(f"retry in {error.retry_after:g} s")
    if error.request_id and error.kind == "INTERNAL":
        notes.append(f"request id {error.request_id}")
    return f"{text} ({', '.join(notes)})" if notes else text
