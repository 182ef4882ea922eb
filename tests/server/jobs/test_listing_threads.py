"""Listings run in threads of their own and end with their caller."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from multigrain.data.image_folder import scan
from multigrain.data.listing import Lister
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.jobs.listing_threads import LISTING_THREADS, in_listing_thread
from tests.data.test_image_folder import touch


async def test_a_listing_is_returned_and_its_errors_are_raised(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    assert (await in_listing_thread(lambda: scan(tmp_path))).paths == ["a/1.png"]
    with pytest.raises(MultigrainError, match="does not exist"):
        await in_listing_thread(lambda: scan(tmp_path / "nowhere"))


async def test_listings_end_with_their_callers_and_leave_the_shared_threads_free(
    tmp_path: Path,
) -> None:
    """All threads list without end; another request is answered, and the next listing too."""
    touch(tmp_path, "a/1.png")
    begun, ended = threading.Semaphore(0), threading.Semaphore(0)

    def list_forever() -> None:
        begun.release()
        try:
            while True:
                Lister(tmp_path, optional=False).images()
        finally:
            ended.release()

    with capture_logs() as logs:
        calls = [
            asyncio.create_task(in_listing_thread(list_forever)) for _ in range(LISTING_THREADS + 3)
        ]
        for _ in range(LISTING_THREADS):
            await asyncio.to_thread(begun.acquire)
        for call in calls:
            call.cancel()
        assert all(
            isinstance(result, asyncio.CancelledError)
            for result in await asyncio.gather(*calls, return_exceptions=True)
        )
        await in_listing_thread(lambda: scan(tmp_path))
        for _ in range(LISTING_THREADS):
            await asyncio.to_thread(ended.acquire)
    assert sum("caller has left" in log["event"] for log in logs) == LISTING_THREADS
    assert not begun.acquire(blocking=False)


async def test_a_listing_ends_at_its_time_limit(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    with pytest.raises(MultigrainError, match="not listed within 0 s: 0 folders") as caught:
        await in_listing_thread(lambda: scan(tmp_path), seconds=0.0)
    assert caught.value.kind is ErrorKind.DATASET
