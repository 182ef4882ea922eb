"""``multigrain-server``: reads the configuration and runs the daemon until a signal stops it."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stderr
from typing import TextIO

import structlog

from multigrain.errors import MultigrainError
from multigrain.memory import return_large_blocks
from multigrain.processes import keep_files_private
from multigrain.streams import BROKEN_PIPE, GuardedStream, flush, standard_streams
from multigrain.text import printable
from multigrain_server import early_signals
from multigrain_server.access.tokens import NewToken, TokenFileError
from multigrain_server.app import RUNNER_COMMAND, App
from multigrain_server.config import ServerConfig
from multigrain_server.data_dir import DataDir, DataDirError
from multigrain_server.database import Database, move_aside
from multigrain_server.doctor.machine import missing_at_start
from multigrain_server.grpc.connections import raise_descriptor_limit
from multigrain_server.grpc.tls import TlsError
from multigrain_server.jobs.recovery import IndexReport, index_folders
from multigrain_server.jobs.store import SCHEMA, JobStore
from multigrain_server.log import setup_logging
from multigrain_server.settings_sources import ConfigError, dump, parse
from multigrain_server.stop_signals import StopSignals

_log = structlog.get_logger(__name__)

USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    ``multigrain-server doctor``, with the same flags, checks the machine instead.

    Args:
        arguments: without the program's name; None = those of the process.

    Returns:
        The exit code: 0 after a graceful shutdown, 1 if the daemon could not start, a check of the
        doctor failed or a result could not be printed, 2 for a wrong configuration, 141 if the
        reader of a result has gone.
    """
    log_stream = sys.stderr
    with standard_streams() as (output, _errors):
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments), output, log_stream)
        except SystemExit as stop:  # --help, or a flag without its value
            return USAGE if stop.code else _printed(output)
        finally:
            flush(log_stream)


def _run(words: list[str], output: GuardedStream, log_stream: TextIO) -> int:
    doctor = words[:1] == ["doctor"]
    try:
        line = parse(words[doctor:], os.environ)
    except ConfigError as error:
        print(printable(f"multigrain-server: {error}"), file=sys.stderr)
        return USAGE
    if doctor or line.print_config or line.new_token or line.rebuild_index:
        early_signals.release()
    if line.print_config:
        print(dump(line.config), end="")
        return _printed(output)
    if doctor:
        # Only here: the daemon starts sooner without it.
        from multigrain_server.doctor import report

        return report.run(report.checks(line.config)) or _printed(output)
    if line.new_token:
        return _print_token(line.new_token, output)
    setup_logging(line.config.log, log_stream)
    if line.rebuild_index:
        keep_files_private()
        return _rebuild(line.config, output)
    try:
        # Not guarded: a log on a disk that was full for a while must go on.
        with redirect_stderr(log_stream):
            asyncio.run(serve(line.config))
    except (DataDirError, TlsError, TokenFileError, OSError) as error:
        print(printable(f"multigrain-server: {error}"), file=sys.stderr)
        return 1
    return 0


def _printed(output: GuardedStream) -> int:
    """The exit code of a command that has printed its result."""
    output.flush()
    if output.failure is None:
        return 0
    if output.broken_pipe:
        return BROKEN_PIPE
    reason = output.failure.strerror or output.failure
    print(f"multigrain-server: cannot write to standard output: {reason}", file=sys.stderr)
    return 1


async def serve(config: ServerConfig, runner_command: Sequence[str] = RUNNER_COMMAND) -> None:
    """Runs until SIGTERM, SIGINT or SIGHUP, then drains and exits the process with code 0.

    A second SIGTERM or SIGINT ends it without draining.

    Args:
        config: the daemon's configuration.
        runner_command: see ``App``.

    Raises:
        DataDirError, TlsError, TokenFileError, OSError: if it cannot start.
    """
    keep_files_private()
    signals = StopSignals()
    signals.install()
    if signals.first.is_set():  # by a signal while the modules were imported
        return
    raise_descriptor_limit()
    return_large_blocks()
    app = App(config, runner_command)
    try:
        await app.start()
    except BaseException:
        await app.abandon()
        raise
    # Modules stay for good: examining them again and again would hold up calls.
    gc.freeze()
    for finding in missing_at_start(config):
        _log.warning(
            "startup check", check=finding.subject, problem=finding.message, fix=finding.fix
        )
    await signals.first.wait()
    stopping = asyncio.create_task(app.stop())
    interrupted = asyncio.create_task(signals.second.wait())
    await asyncio.wait((stopping, interrupted), return_when=asyncio.FIRST_COMPLETED)
    interrupted.cancel()
    if not stopping.done():
        _log.warning("second signal: exiting without draining")
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        await app.abandon()
        return
    await stopping
    # Not through the end of the event loop, which would cancel the latest calls.
    flush(sys.__stdout__, sys.__stderr__)
    os._exit(0)


def rebuild_index(config: ServerConfig) -> str:
    """Moves the old index of jobs aside and builds a new one from the job folders.

    Returns:
        What was done, in lines for people.

    Raises:
        DataDirError: if a daemon uses the data directory or the index cannot be written.
    """
    data = DataDir(config.data_dir)
    try:
        old = move_aside(data.database, "old") if data.database.exists() else None
        with closing(Database(data.database, [SCHEMA])) as database:
            store = JobStore(database)
            done = index_folders(data.jobs, store)
            counts = store.counts()
    except (sqlite3.Error, MultigrainError) as error:
        raise DataDirError(f"{data.database} cannot be written: {error}") from error
    finally:
        data.close()
    return "\n".join(_index_report(done, counts, old.name if old is not None else ""))


def _index_report(done: IndexReport, counts: dict[str, int], old: str) -> list[str]:
    states = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    lines = [f"{len(done.added)} jobs indexed" + (f": {states}" if states else "")]
    lines += [printable(f"skipped jobs/{name}: {why}") for name, why in done.skipped.items()]
    if old:
        lines.append(f"the old index is now {old} and can be deleted")
    return lines


def _rebuild(config: ServerConfig, output: GuardedStream) -> int:
    try:
        print(rebuild_index(config))
    except (DataDirError, OSError) as error:
        print(printable(f"multigrain-server: {error}"), file=sys.stderr)
        return 1
    return _printed(output)


def _print_token(request: str, output: GuardedStream) -> int:
    try:
        new = NewToken.parse(request)
    except ValueError as error:
        print(f"multigrain-server: --new-token: {error}", file=sys.stderr)
        return USAGE
    print(new.line)
    failed = _printed(output)
    if failed:
        return failed
    print(f"token of {new.entry.name}, shown only once: {new.token}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
