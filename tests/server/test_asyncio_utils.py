"""Threads that finish before their canceled caller does."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from multigrain_server.asyncio_utils import to_thread_uncancellable


async def test_a_canceled_caller_waits_for_the_thread() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    go_on, done = threading.Event(), threading.Event()
    busy = asyncio.create_task(asyncio.to_thread(go_on.wait, 60))
    await asyncio.sleep(0)
    work = asyncio.create_task(to_thread_uncancellable(done.set))
    await asyncio.sleep(0)
    work.cancel()
    await asyncio.sleep(0)
    assert not work.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert done.is_set()
    await busy


async def test_results_and_exceptions_are_passed_through() -> None:
    assert await to_thread_uncancellable(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await to_thread_uncancellable(divmod, 7, 0)
