"""Reads files next to the event loop, in threads that nothing has to wait for.

A read from a network file system whose server is gone does not return and cannot be interrupted.
Its caller is answered at a time limit all the same, other folders are read meanwhile, and the
threads are daemon threads: the process exits without them.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import structlog

from multigrain.errors import ErrorKind, MultigrainError

_log = structlog.get_logger(__name__)

T = TypeVar("T")

THREADS = 8
"""Threads of one place. Those that are stuck count."""

READ_SECONDS = 20.0
"""For a few small files, such as manifests, and for what leads to them."""


@dataclass(eq=False)
class _Work(Generic[T]):
    function: Callable[[], T]
    context: contextvars.Context
    future: asyncio.Future[T]

    def run(self) -> None:
        if self.future.cancelled():  # its caller has left
            return
        try:
            result = self.context.run(self.function)
        except BaseException as error:
            self._finish(self.future.set_exception, error)
        else:
            self._finish(self.future.set_result, result)

    def _finish(self, set_it: Callable[[Any], None], value: object) -> None:
        def finish() -> None:
            if not self.future.done():
                set_it(value)

        with suppress(RuntimeError):  # the event loop is closed
            self.future.get_loop().call_soon_threadsafe(finish)


@dataclass
class _Place:
    waiting: deque[_Work[Any]] = field(default_factory=deque)
    threads: int = 0


class FileThreads:
    """Runs functions that read files in daemon threads.

    Args:
        name: of the threads.
        most: threads of one place at the same time; more functions wait for their turn.
    """

    def __init__(self, name: str, most: int = THREADS) -> None:
        self._name = name
        self._most = most
        self._lock = threading.Lock()
        self._places: dict[str, _Place] = {}

    async def run(self, function: Callable[[], T], *, place: str, seconds: float) -> T:
        """Runs a function in a thread.

        When the caller is canceled, the function does not start any more, or its result is
        dropped.

        Args:
            function: reads files.
            place: where they are, such as a data root: one place's stuck threads do not hold up
                another's. There must be few places.
            seconds: after which the caller is answered, whether the function has returned or not.

        Raises:
            MultigrainError: UNAVAILABLE, if the time is over; whatever the function raises.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._start(_Work(function, contextvars.copy_context(), future), place)
        try:
            done, _ = await asyncio.wait({future}, timeout=seconds)
        except asyncio.CancelledError:
            future.cancel()
            raise
        if done:
            return future.result()
        future.cancel()
        _log.warning("files not read in time", place=place, seconds=seconds)
        raise MultigrainError(
            ErrorKind.UNAVAILABLE,
            f"the storage did not answer within {seconds:.0f} s: check the disk or the network "
            "file system that the path is on, then try again",
        )

    def _start(self, work: _Work[Any], place: str) -> None:
        with self._lock:
            queue = self._places.setdefault(place, _Place())
            queue.waiting.append(work)
            if queue.threads >= self._most:
                return
            queue.threads += 1
        threading.Thread(
            target=self._work, args=(place, queue), name=self._name, daemon=True
        ).start()

    def _work(self, place: str, queue: _Place) -> None:
        while True:
            with self._lock:
                if not queue.waiting:
                    queue.threads -= 1
                    if not queue.threads:
                        del self._places[place]
                    return
                work = queue.waiting.popleft()
            work.run()
            del work  # its result may be large


_threads = FileThreads("files")


async def read_files(
    function: Callable[[], T], *, place: str = "", seconds: float = READ_SECONDS
) -> T:
    """Runs a function that reads a few files; see :meth:`FileThreads.run`."""
    return await _threads.run(function, place=place, seconds=seconds)
