"""Signals that stop the daemon."""

from __future__ import annotations

import asyncio
import signal

import structlog

from multigrain_server import early_signals

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
        """Handles the signals in the running event loop, and those that came before it."""
        loop = asyncio.get_running_loop()
        for number in early_signals.STOP_SIGNALS:
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if number == signal.SIGTERM or not ignored:
                loop.add_signal_handler(number, self._received, number)
        for number in early_signals.take():
            self._received(number)

    def _received(self, number: signal.Signals) -> None:
        _log.info("signal received", signal=number.name)
        if number != signal.SIGHUP:
            self._interrupts += 1
        self.first.set()
        if self._interrupts > 1:
            self.second.set()
