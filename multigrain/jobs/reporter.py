"""A worker's end of the channel."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from multigrain.events.records import Record
from multigrain.jobs.messages import (
    Alive,
    Done,
    Emit,
    Failed,
    Hello,
    Message,
    Ready,
    decode,
    encode,
)
from multigrain.jobs.messages import Stop as StopMessage

EXIT_RUNNER_LOST = 75
"""Exit code of a worker whose runner has gone (EX_TEMPFAIL of sysexits.h)."""

_ALIVE_SECONDS = 0.25
"""Time between two signs of life at least; ``ranks.MIN_STALL_SECONDS`` is well above it."""


class ChannelReporter:
    """Speaks to the runner; implements ``multigrain.jobs.context.Reporter``.

    ``emit`` only puts the record into a queue: a thread of its own encodes and sends, so that
    a step never waits for the event log. A second thread listens; when the runner has gone it
    ends the process, since a worker without a runner has nobody to record what it does.

    Args:
        address: of the runner's Unix socket.
        hello: introduces the worker.
        on_lost: called with an exit code by a thread that finds that the runner has gone.

    Raises:
        OSError: if the runner is not there.
    """

    def __init__(
        self, address: str, hello: Hello, on_lost: Callable[[int], object] = os._exit
    ) -> None:
        self._on_lost = on_lost
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(address)
        self._socket.sendall(encode(hello))
        self._stop = threading.Event()
        self._queue: SimpleQueue[Message | None] = SimpleQueue()
        self._alive_after = 0.0
        self._sender = threading.Thread(target=self._send, name="reporter-send", daemon=True)
        self._sender.start()
        threading.Thread(target=self._listen, name="reporter-listen", daemon=True).start()

    def emit(self, record: Record) -> None:
        self._queue.put(Emit(record))

    def alive(self) -> None:
        now = time.monotonic()
        if now >= self._alive_after:
            self._alive_after = now + _ALIVE_SECONDS
            self._queue.put(Alive())

    @property
    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def ready(self) -> None:
        """Tells that the cluster is formed and the work begins."""
        self._queue.put(Ready())

    def finish(self, message: Done | Failed) -> None:
        """Tells how the work ended, and returns when everything said has been sent."""
        self._queue.put(message)
        self._queue.put(None)
        self._sender.join()

    def _send(self) -> None:
        while (message := self._queue.get()) is not None:
            try:
                self._socket.sendall(encode(message))
            except OSError:
                self._on_lost(EXIT_RUNNER_LOST)
                return

    def _listen(self) -> None:
        with self._socket.makefile("rb") as lines:
            try:
                for line in lines:
                    if isinstance(decode(line), StopMessage):
                        self._stop.set()
            except (OSError, ValueError):
                pass  # the runner is gone, or not ours: the end is the same
        self._on_lost(EXIT_RUNNER_LOST)
