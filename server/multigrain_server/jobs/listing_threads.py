"""Lists folders in threads of their own, so that nothing else waits for them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from multigrain.data.listing import watched
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.file_threads import FileThreads

_log = structlog.get_logger(__name__)

T = TypeVar("T")

# Most folders below one data root that are listed at the same time.
LISTING_THREADS = 8
# A folder with ten million images on a slow network file system takes minutes.
LISTING_SECONDS = 1800.0

# A listing ends by itself at its time limit, unless the disk does not answer.
_STUCK_SECONDS = 60.0

_threads = FileThreads("listing", LISTING_THREADS)


class _CallerLeftError(Exception):
    """Nobody waits for the listing."""


async def in_listing_thread(
    work: Callable[[], T], *, place: str = "", seconds: float = LISTING_SECONDS
) -> T:
    """Runs a function that lists folders by ``multigrain.data.listing`` in a thread.

    When the caller is canceled, as gRPC does when a client has left, the listing ends at its next
    folder.

    Args:
        work: the function.
        place: the data root of the folder: listings below other roots do not wait for these.
        seconds: how long it may list.

    Raises:
        MultigrainError: DATASET, if the time is over; UNAVAILABLE, if the disk does not answer;
            whatever ``work`` raises.
    """
    abandoned = threading.Event()

    def run() -> T:
        begun = time.monotonic()
        folders = 0

        def proceed() -> None:
            nonlocal folders
            taken = time.monotonic() - begun
            if abandoned.is_set():
                _log.info("listing ended, its caller has left", folders=folders, seconds=taken)
                raise _CallerLeftError
            if taken > seconds:
                _log.warning("listing ended, it took too long", folders=folders, seconds=taken)
                raise MultigrainError(
                    ErrorKind.DATASET,
                    f"the folder was not listed within {seconds:.0f} s: {folders} folders and "
                    "files were looked into; give a folder with fewer folders and links, or copy "
                    "the images to a faster disk",
                )
            folders += 1

        with watched(proceed):
            return work()

    try:
        return await _threads.run(run, place=place, seconds=seconds + _STUCK_SECONDS)
    except asyncio.CancelledError:
        abandoned.set()
        raise
