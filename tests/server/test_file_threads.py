"""Files are read in threads that hold up neither the event loop nor each other nor the exit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.file_threads import FileThreads

MOST = 3


@pytest.fixture
def threads() -> FileThreads:
    return FileThreads("test", MOST)


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """Until it is set, a disk does not answer."""
    event = threading.Event()
    yield event
    event.set()


async def test_results_and_errors_are_returned(threads: FileThreads) -> None:
    variable = ContextVar("variable", default="")
    variable.set("of the caller")
    assert await threads.run(variable.get, place="a", seconds=20.0) == "of the caller"
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0, place="a", seconds=20.0)
    with pytest.raises(TimeoutError, match="of the function"):
        await threads.run(_raise, place="a", seconds=20.0)


def _raise() -> None:
    raise TimeoutError("of the function")


async def test_a_disk_that_does_not_answer_holds_up_no_other(
    threads: FileThreads, stuck: threading.Event
) -> None:
    calls = [
        asyncio.create_task(threads.run(stuck.wait, place="a", seconds=0.2))
        for _ in range(2 * MOST)
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    for error in results:
        assert isinstance(error, MultigrainError)
        assert error.kind is ErrorKind.UNAVAILABLE
        assert "did not answer" in error.message
    assert threading.active_count() < 100
    assert _running() == MOST  # those that are stuck; no more are started for their place
    assert await threads.run(lambda: "b", place="b", seconds=20.0) == "b"
    with pytest.raises(MultigrainError):
        await threads.run(lambda: "a", place="a", seconds=0.1)
    stuck.set()
    assert await threads.run(lambda: "a", place="a", seconds=20.0) == "a"


def _running() -> int:
    return sum(thread.name == "test" for thread in threading.enumerate())


async def test_threads_end_when_there_is_nothing_to_do(threads: FileThreads) -> None:
    await asyncio.gather(
        *(threads.run(lambda: None, place=str(i % 4), seconds=20.0) for i in range(40))
    )
    for _ in range(2000):
        if not _running():
            break
        await asyncio.sleep(0.01)
    assert not _running()
    assert not threads._places


async def test_what_a_canceled_caller_wanted_is_not_begun(
    threads: FileThreads, stuck: threading.Event
) -> None:
    busy = [
        asyncio.create_task(threads.run(stuck.wait, place="a", seconds=20.0)) for _ in range(MOST)
    ]
    begun: list[str] = []
    call = asyncio.create_task(
        threads.run(lambda: begun.append("canceled"), place="a", seconds=20.0)
    )
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    stuck.set()
    await asyncio.gather(*busy)
    await threads.run(lambda: begun.append("next"), place="a", seconds=20.0)
    assert begun == ["next"]


@pytest.mark.process
def test_a_stuck_thread_does_not_keep_the_process() -> None:
    program = """
import asyncio, threading
from multigrain.errors import MultigrainError
from multigrain_server.file_threads import read_files
from multigrain_server.jobs.listing_threads import _threads
async def main():
    for run in (read_files, _threads.run):
        try:
            await run(threading.Event().wait, place="nfs", seconds=0.2)
        except MultigrainError as error:
            print(error.kind.name)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("UNAVAILABLE\n") == 2
