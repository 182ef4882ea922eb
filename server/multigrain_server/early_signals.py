"""Signals that arrive while the daemon's modules are still imported.

Imports only the standard library's smallest modules: it is used before anything else.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_defaults: dict[signal.Signals, Any] = {}
_received: list[signal.Signals] = []


def hold() -> None:
    """Keeps signals that stop the daemon until ``take`` or ``release``.

    SIGHUP and SIGINT that are ignored (nohup, a background process of a script) stay ignored.
    """
    for number in STOP_SIGNALS:
        handler = signal.getsignal(number)
        if number == signal.SIGTERM or handler is not signal.SIG_IGN:
            interrupt = number == signal.SIGINT
            _defaults[number] = signal.default_int_handler if interrupt else signal.SIG_DFL
            signal.signal(number, _keep)


def take() -> list[signal.Signals]:
    """The signals since ``hold``, for the caller that handles the following ones."""
    received = _received.copy()
    _received.clear()
    return received


def release() -> None:
    """Lets signals end the process as usual, also those since ``hold``."""
    for number, handler in _defaults.items():
        signal.signal(number, handler)
    _defaults.clear()
    for number in take():
        os.kill(os.getpid(), number)


def _keep(number: int, _frame: FrameType | None) -> None:
    _received.append(signal.Signals(number))
