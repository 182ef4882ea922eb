"""Parses the command line, runs the command, and turns errors into one line and a code."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from multigrain import __version__
from multigrain_client.cli import (
    alias,
    cancel,
    classify,
    delete,
    download,
    embed,
    embed_folder,
    evaluate,
    export,
    import_model,
    jobs,
    load,
    models,
    plot,
    resume,
    train,
    unload,
    watch,
)
from multigrain_client.cli.command import (
    FAILED,
    INTERRUPTED,
    OK,
    USAGE,
    Command,
    make_context,
    shared_arguments,
    shared_defaults,
)
from multigrain_client.errors import InvalidRequest, JobFailed, MultigrainClientError

COMMANDS: tuple[Command, ...] = (
    train.COMMAND,
    watch.COMMAND,
    jobs.COMMAND,
    evaluate.COMMAND,
    export.COMMAND,
    cancel.COMMAND,
    resume.COMMAND,
    delete.COMMAND,
    models.COMMAND,
    load.COMMAND,
    unload.COMMAND,
    alias.COMMAND,
    import_model.COMMAND,
    download.COMMAND,
    embed.COMMAND,
    embed_folder.COMMAND,
    classify.COMMAND,
    plot.COMMAND,
)

_COMMAND_OF = {command.call: command.name for command in COMMANDS if command.call}
_CALL = re.compile(rf"\b({'|'.join(_COMMAND_OF)})\b")

EPILOG = """\
exit codes: 0 success, 1 the job or the call failed, 2 wrong usage, 130 interrupted

examples:
  multigrain train --preset digits-demo --train digits/train --watch
  multigrain evaluate --job JOB --dataset digits/val --watch
  multigrain export --job JOB --model-name digits --watch
  multigrain load digits && multigrain embed *.png --out vectors.npy
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="multigrain",
        description="Trains, evaluates, exports and serves image embeddings on a server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"multigrain {__version__}")
    # Before the command or after it; what stands after wins, if it is there at all.
    shared_arguments(parser)
    parser.set_defaults(**shared_defaults())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared_arguments(shared)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name, help=command.help, description=command.help, parents=[shared]
        )
        command.configure(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code; see EPILOG."""
    parsed = build_parser().parse_args(arguments)
    try:
        code: int = parsed.run(make_context(parsed))
        sys.stdout.flush()
        return code
    except MultigrainClientError as error:
        print(f"multigrain {parsed.command}: {_one_line(error)}", file=sys.stderr)
        if isinstance(error, JobFailed) and error.job.error.log_tail:
            print(error.job.error.log_tail.rstrip(), file=sys.stderr)
        # What the client found wrong itself, before any call, is wrong usage.
        return USAGE if isinstance(error, InvalidRequest) and error.code is None else FAILED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        # Of files named on the command line: calls raise errors of the client.
        where = f"{error.filename}: " if error.filename else ""
        print(f"multigrain {parsed.command}: {where}{error.strerror or error}", file=sys.stderr)
        return FAILED


def _one_line(error: MultigrainClientError) -> str:
    text = " ".join(str(error).split())
    if error.kind:  # the server speaks, to callers of whatever kind
        text = _CALL.sub(lambda call: f"`multigrain {_COMMAND_OF[call[0]]}`", text)
    notes = []
    if error.retry_after is not None:
        notes.append(f"try again in {error.retry_after:g} s")
    if error.request_id and error.kind == "INTERNAL":
        notes.append(f"request id {error.request_id}")
    return f"{text} ({', '.join(notes)})" if notes else text
