"""Signals that stop the daemon, and standard streams that may be gone by then."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import structlog

_log = structlog.get_logger(__name__)


class StopSignals:
    """SIGTERM, SIGINT and SIGHUP start the drain; another SIGTERM or SIGINT cuts it short.

    A SIGHUP never does: a terminal that closes may send several, and systemd sends one right after
    SIGTERM to the processes of a session. SIGHUP and SIGINT that are ignored at the start (nohup, a
    background process of a script) stay ignored.

    Attributes:
        first: set by the first signal.
        second: set by the second SIGTERM or SIGINT.
    """

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._interrupts = 0

    def install(self) -> None:
        """Handles the signals in the running event loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if number == signal.SIGTERM or not ignored:
                loop.add_signal_handler(number, self._received, number)

    def _received(self, number: signal.Signals) -> None:
        _log.info("signal received", signal=number.name)
        if number != signal.SIGHUP:
            self._interrupts += 1
        self.first.set()
        if self._interrupts > 1:
            self.second.set()


def open_standard_streams() -> None:
    """Opens /dev/null as each standard stream that the parent has closed.

    The next file or connection would take its number otherwise, and native code that prints a
    message would write it there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def flush_output() -> None:
    """Writes what standard output and error still hold, unless their terminal or pipe is gone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # Python would try again at its exit, and turn the exit code into 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
