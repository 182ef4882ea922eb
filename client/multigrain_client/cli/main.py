"""Parses the command line, runs the command, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from multigrain import __version__
from multigrain.streams import BROKEN_PIPE, standard_streams
from multigrain.text import printable
from multigrain_client.cli import completion, images, indexes, inspect, jobs, models, runs, track
from multigrain_client.cli.arguments import (
    FAILED,
    INTERRUPTED,
    OK,
    USAGE,
    Command,
    Context,
    Result,
    add_shared_options,
    shared_defaults,
    unknown,
)
from multigrain_client.cli.output import Output, OutputError
from multigrain_client.errors import InvalidRequest, JobFailed, MultigrainClientError
from multigrain_client.local_files import STANDARD_OUTPUT, descriptor_of

COMMANDS: tuple[Command, ...] = (
    *jobs.COMMANDS,
    *runs.COMMANDS,
    *inspect.COMMANDS,
    *models.COMMANDS,
    *images.COMMANDS,
    *indexes.COMMANDS,
    *track.COMMANDS,
    *completion.COMMANDS,
)

_COMMAND_OF = {command.call: command.name for command in COMMANDS if command.call}

# Seconds after an interrupt in which another one is ignored.
IMPATIENT = 2.0

EPILOG = """\
exit codes: 0 success; 1 the job, the call or an image failed, or the output cannot be written;
  2 usage error; 130 interrupted; 141 the reader of the output has left (such as head)

examples:
  multigrain inspect photos
  multigrain train --train photos --watch
  multigrain evaluate --job JOB --watch
  multigrain export --job JOB --model-name photos --watch
  multigrain load photos && multigrain embed *.jpg --out vectors.npy
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
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
    shared = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    add_shared_options(shared)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name, help=command.help, description=command.help, parents=[shared]
        )
        command.configure(sub)
        sub.set_defaults(chosen=command)
    return parser


class _Parser(argparse.ArgumentParser):
    """Escapes what the arguments of a wrong command line could do to a terminal, and guesses
    what a misspelled command was meant to be."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            text = unknown(str(value), list(map(str, action.choices)))
            raise argparse.ArgumentError(action, text)

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class _Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP: ends the command, which keeps what is computed."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit code (see EPILOG)."""
    with standard_streams() as (stdout, stderr), _signals():
        try:
            parsed = build_parser().parse_args(arguments)
        except SystemExit as stop:
            # The help, or the error of a wrong command line.
            if stop.code:
                return USAGE
            return _ended(Output(stdout, stderr, as_json=False), Result.OUTPUT)
        command: Command = parsed.chosen
        out: str = getattr(parsed, "out", None) or ""
        to_output = out == "-" or descriptor_of(out) == 1
        if to_output:
            parsed.out = STANDARD_OUTPUT
            if stdout.failure is not None:
                _report_output(
                    Output(stdout, stderr, as_json=False, command=command.name),
                    OutputError(stdout),
                )
                return FAILED
        # Reports must not follow the file in standard output.
        report = stderr if to_output else stdout
        output = Output(
            report,
            stderr,
            as_json=parsed.json,
            command=command.name,
            commands=_COMMAND_OF,
            progress_only=to_output,
        )
        result = command.result
        if result is Result.FILE and not parsed.out:
            result = Result.OUTPUT
        code = _run(command, Context(parsed, output), result)
        return code if to_output else code or _ended(output, result)


def _run(command: Command, context: Context, result: Result) -> int:
    """Runs a command and prints its error, if there is one."""
    output = context.output
    try:
        if result is Result.OUTPUT:
            output.check()
        return command.run(context)
    except OutputError as error:
        if error.broken_pipe:
            return BROKEN_PIPE
        _report_output(output, error)
        return FAILED
    except MultigrainClientError as error:
        output.client_error(error)
        if isinstance(error, JobFailed):
            output.log_tail(error.job.error.log_tail)
        # An error that the client found by itself, before any call, is a usage error.
        return USAGE if isinstance(error, InvalidRequest) and error.code is None else FAILED
    except KeyboardInterrupt as error:
        output.note("")
        for note in getattr(error, "__notes__", ()):
            output.error(f"interrupted; {note}")
        return 128 + error.number if isinstance(error, _Interrupted) else INTERRUPTED
    except BrokenPipeError:  # of --out
        return BROKEN_PIPE
    except OSError as error:
        output.client_error(error)
        return FAILED


def _ended(output: Output, result: Result) -> int:
    """The exit code of a command that has succeeded, by what became of its output."""
    output.stream.flush()
    if output.stream.failure is None or (result is Result.FILE and output.stream.broken_pipe):
        return OK
    if output.stream.broken_pipe:
        return BROKEN_PIPE
    _report_output(output, OutputError(output.stream))
    return FAILED


def _report_output(output: Output, error: OutputError) -> None:
    text = f"cannot write to standard output: {error.reason}"
    output.error(f"{text} ({error.lost})" if error.lost else text)


class _Stop:
    """Handles the signals that end a command.

    A second signal shortly after the first is ignored: it must not interrupt the rows' being kept.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: float | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        now = self._clock()
        if self._first is not None and now - self._first < IMPATIENT:
            return
        self._first = now
        raise _Interrupted(number)


@contextmanager
def _signals() -> Iterator[None]:
    """Ends the command with ``_Interrupted`` when the process is interrupted or terminated."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        stop = _Stop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Under nohup, SIGHUP is ignored and stays so.
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
