"""Tasks that outlive a call, and threads that finish before their canceled caller does."""

from __future__ import annotations

import ast
import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path

import pytest

import multigrain_server
from multigrain_server.asyncio_utils import background_task, to_thread_uncancellable

CALL: ContextVar[str] = ContextVar("CALL", default="")
# Tasks that end with the call that starts them, or that no call starts.
OF_A_CALL = {
    "app.start",
    "asyncio_utils.background_task",
    "grpc.interceptor.__anext__",
    "http.acceptor._enter",
    "jobs.service._queue",
    "main.serve",
    "serving.stream._read",
    "serving.stream.replies",
}


async def test_a_background_task_does_not_know_the_call_that_starts_it() -> None:
    async def work() -> str:
        return CALL.get()

    CALL.set("call")
    assert await asyncio.create_task(work()) == "call"
    assert await background_task(work(), name="x") == ""


def test_other_tasks_end_with_their_call() -> None:
    root = Path(multigrain_server.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
                names = {call.attr for call in calls if isinstance(call, ast.Attribute)}
                if "create_task" in names:
                    found.add(f"{module}.{function.name}")
    assert found == OF_A_CALL


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
