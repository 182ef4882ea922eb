"""Lists folders in threads of their own, so that nothing else waits for them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from multigrain.data.listing import watched
from multigrain.errors import ErrorKind, MultigrainError

_log = structlog.get_logger(__name__)

T = TypeVar("T")

# Most folders that are listed at the same time. The shared pool of asyncio.to_thread also serves
# the disk and the registry: listings must not fill it.
LISTING_THREADS = 8
# A folder with ten million images on a slow network file system takes minutes.
LISTING_SECONDS = 1800.0

_pool = ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="listing")


class _CallerLeftError(Exception):
    """Nobody waits for the listing."""


async def in_listing_thread(work: Callable[[], T], *, seconds: float = LISTING_SECONDS) -> T:
    """Runs a function that lists folders by ``multigrain.data.listing`` in a thread.

    When the caller is canceled, as gRPC does when a client has left, the listing ends at its next
    folder.

    Args:
        work: the function.
        seconds: how long it may list.

    Raises:
        MultigrainError: DATASET, if the time is over; whatever ``work`` raises.
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
        return await asyncio.get_running_loop().run_in_executor(_pool, run)
    except asyncio.CancelledError:
        abandoned.set()
        raise
