"""Clients after and during ``close``, in several event loops and threads, and after a fork."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from multigrain.v1 import embedding_pb2, job_pb2, model_pb2
from multigrain_client import AsyncClient, Client, ClientClosed, MultigrainClientError, RetryPolicy
from multigrain_client.methods import HEALTH_CHECK
from tests.client.events import job_of
from tests.client.held import Held
from tests.environment import program_environment

CALLS: dict[str, Callable[[Any], Any]] = {
    "health": lambda client: client.health(),
    "start_training": lambda client: client.start_training(preset="x"),
    "evaluate": lambda client: client.evaluate(job="job-1"),
    "export": lambda client: client.export(job="job-1"),
    "job": lambda client: client.job("job-1"),
    "jobs": lambda client: client.jobs(),
    "cancel": lambda client: client.cancel("job-1"),
    "resume": lambda client: client.resume("job-1"),
    "delete_job": lambda client: client.delete_job("job-1"),
    "stream_events": lambda client: client.stream_events("job-1"),
    "stream_losses": lambda client: client.stream_losses("job-1"),
    "wait": lambda client: client.wait("job-1"),
    "inspect_dataset": lambda client: client.inspect_dataset(dataset="{dir}"),
    "find_job": lambda client: client.find_job("job"),
    "artifacts": lambda client: client.artifacts("job-1"),
    "read_artifact": lambda client: client.read_artifact("job-1", "results/a"),
    "download_artifact": lambda client: client.download_artifact("job-1", "results/a", "{dir}/a"),
    "models": lambda client: client.models(),
    "model": lambda client: client.model("fake@1"),
    "load_model": lambda client: client.load_model("fake@1"),
    "unload_model": lambda client: client.unload_model("fake@1"),
    "set_alias": lambda client: client.set_alias("a", "fake@1"),
    "delete_model": lambda client: client.delete_model("fake@1"),
    "import_model": lambda client: client.import_model("{dir}"),
    "download_model": lambda client: client.download_model("fake@1", "{dir}/x.tar"),
    "embed": lambda client: client.embed([b"1"] * 3),
    "embed_each": lambda client: client.embed_each([b"1"] * 3),
    "embed_stream": lambda client: client.embed_stream([b"1"] * 3),
    "embed_folder": lambda client: client.embed_folder("{dir}", "{dir}/v.npy"),
    "classify": lambda client: client.classify([b"1"] * 3),
    "classify_each": lambda client: client.classify_each([b"1"] * 3),
    "Embed": lambda client: client.Embed(images=[b"1"]),
    "StreamEvents": lambda client: client.StreamEvents(job_id="job-1"),
    "index": lambda client: client.index("pets").info(),
    "create_index": lambda client: client.create_index("pets"),
    "indexes": lambda client: client.indexes(),
    "delete_index": lambda client: client.delete_index("pets"),
    "set_index_alias": lambda client: client.set_index_alias("live", "pets"),
    "EmbedStream": lambda client: client.EmbedStream(iter([embedding_pb2.EmbedRequest()])),
}


async def drain(result: Any) -> Any:
    """The result of a call of an AsyncClient, or all items of its iterator."""
    if isinstance(result, AsyncIterator):
        return [item async for item in result]
    return await result


@pytest.fixture
def folder(state, tmp_path, monkeypatch):
    """The current folder, named "{dir}" in it, is an image folder and a bundle."""
    monkeypatch.chdir(tmp_path)
    inside = tmp_path / "{dir}"
    inside.mkdir()
    (inside / "a.png").write_bytes(b"1")
    (inside / "model.json").write_text("{}")
    state.jobs["job-1"] = job_of("job-1", state=job_pb2.JOB_STATE_SUCCEEDED)
    state.models["fake@1"] = model_pb2.Model(name="fake", version=1)
    state.bundle = b"archive"
    state.artifacts = {"results/a": b"content of a"}
    return inside


def public_calls(kind: type) -> set[str]:
    return {
        name
        for name in dir(kind)
        if not name.startswith("_") and callable(getattr(kind, name)) and name != "close"
    }


def test_calls_are_complete() -> None:
    assert public_calls(Client) <= CALLS.keys()
    assert public_calls(AsyncClient) == public_calls(Client)


@pytest.mark.parametrize("name", CALLS)
def test_call_of_a_closed_client_names_the_cause(server, folder, name) -> None:
    client = Client(server.address)
    client.health()
    client.close()
    client.close()
    with pytest.raises(ClientClosed, match="the client is closed, by close"):
        list(CALLS[name](client))
    assert [path.name for path in sorted(folder.iterdir())] == ["a.png", "model.json"]


@pytest.mark.parametrize("name", CALLS)
async def test_call_of_a_closed_asyncio_client_names_the_cause(server, folder, name) -> None:
    client = AsyncClient(server.address)
    await client.health()
    await client.close()
    await client.close()
    with pytest.raises(ClientClosed, match="the client is closed, by close"):
        await drain(CALLS[name](client))
    assert [path.name for path in sorted(folder.iterdir())] == ["a.png", "model.json"]


async def test_client_closed_before_its_first_call(server) -> None:
    client, other = Client(server.address), AsyncClient(server.address)
    client.close()
    await other.close()
    with pytest.raises(ClientClosed):
        client.health()
    with pytest.raises(ClientClosed):
        await other.health()


def test_client_closed_is_an_error_of_both_trees() -> None:
    assert issubclass(ClientClosed, MultigrainClientError)
    assert issubclass(ClientClosed, RuntimeError)


@pytest.mark.parametrize(
    ("rpc", "name"),
    [("GetJob", "job"), ("Embed", "embed"), ("StreamEvents", "stream_events")],
)
def test_blocking_client_closed_by_another_thread(server, state, folder, rpc, name) -> None:
    held = Held(state, rpc)
    client = Client(server.address, retry=RetryPolicy(initial=0.001), batch_size=1)
    with ThreadPoolExecutor() as pool:
        call = pool.submit(lambda: list(CALLS[name](client)))
        try:
            assert held.arrived.acquire(timeout=10)
            client.close()
            with pytest.raises(ClientClosed, match=rpc):
                call.result(20)
        finally:
            held.release()


@pytest.mark.parametrize(
    ("rpc", "name"),
    [
        ("GetJob", "job"),
        ("Embed", "embed"),
        ("StreamEvents", "stream_events"),
        ("StreamEvents", "wait"),
        ("EmbedStream", "embed_stream"),
    ],
)
async def test_asyncio_client_closed_by_another_task(server, state, folder, rpc, name) -> None:
    held = Held(state, rpc)
    client = AsyncClient(server.address, retry=RetryPolicy(initial=0.001))
    call = asyncio.create_task(drain(CALLS[name](client)))
    try:
        assert await asyncio.to_thread(held.arrived.acquire, timeout=10)
        await client.close()
        with pytest.raises(ClientClosed, match=rpc):
            await asyncio.wait_for(call, 20)
    finally:
        held.release()


async def test_canceled_task_stays_canceled(server, state) -> None:
    held = Held(state, "GetJob")
    client = AsyncClient(server.address)
    call = asyncio.create_task(client.job("job-1"))
    try:
        assert await asyncio.to_thread(held.arrived.acquire, timeout=10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    finally:
        held.release()
        await client.close()


@pytest.mark.parametrize("name", CALLS)
def test_asyncio_client_works_in_a_second_event_loop(server, folder, state, name) -> None:
    client = AsyncClient(server.address, timeout=10.0)

    async def ask() -> None:
        await client.health()

    async def call() -> Any:
        return await drain(CALLS[name](client))

    asyncio.run(ask())
    gc.collect()
    if name == "EmbedStream":
        return  # takes an asynchronous iterator; embed_stream covers it
    if name in ("import_model", "download_model"):
        state.bundle = b"archive"
    asyncio.run(call())
    asyncio.run(client.close())
    with pytest.raises(ClientClosed):
        asyncio.run(ask())


def test_asyncio_client_is_shared_between_threads(server) -> None:
    client = AsyncClient(server.address, timeout=10.0, batch_size=1)
    rows: list[int] = []

    def work() -> None:
        async def calls() -> None:
            for _ in range(5):
                vectors = await client.embed([b"1"] * 8)
                rows.append(len(vectors))

        asyncio.run(calls())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert rows == [8] * 20


def test_close_reaches_the_calls_of_another_running_loop(server, state) -> None:
    held = Held(state, "GetJob")
    client = AsyncClient(server.address)

    async def ask() -> None:
        await client.job("job-1")

    with ThreadPoolExecutor() as pool:
        call = pool.submit(asyncio.run, ask())
        try:
            assert held.arrived.acquire(timeout=10)
            asyncio.run(client.close())
            with pytest.raises(ClientClosed, match="was closed while the call was in flight"):
                call.result(20)
        finally:
            held.release()


def test_close_does_not_wait_for_a_loop_whose_thread_waits_for_it(server) -> None:
    client = AsyncClient(server.address, timeout=10.0)
    closed = threading.Event()

    def close() -> None:
        asyncio.run(client.close())
        closed.set()

    async def work() -> bool:
        await client.health()
        threading.Thread(target=close, daemon=True).start()
        return closed.wait(20)  # blocks this loop

    assert asyncio.run(work())


def test_channels_of_ended_event_loops_are_released(server) -> None:
    client = AsyncClient(server.address, timeout=10.0)
    channels = []

    async def ask() -> None:
        await client.health()
        channels.append(weakref.ref(next(reversed(client._transport._channels.values()))))

    for _ in range(4):
        asyncio.run(ask())
    gc.collect()
    assert [channel() is None for channel in channels] == [True, True, True, False]
    asyncio.run(client.close())
    gc.collect()
    assert channels[-1]() is None


def test_threads_of_a_forked_process_share_one_channel(server, monkeypatch) -> None:
    client = Client(server.address, timeout=10.0)
    transport = client._transport
    monkeypatch.setattr(os, "getpid", lambda: -1)
    both, open_channel, opened = threading.Barrier(2, timeout=20), transport._open, []

    def open_together() -> grpc.Channel:
        both.wait()
        channel = open_channel()
        opened.append(channel)
        return channel

    monkeypatch.setattr(transport, "_open", open_together)
    with ThreadPoolExecutor(2) as pool:
        used = {
            channel.result()
            for channel in [pool.submit(transport._channel, HEALTH_CHECK) for _ in "ab"]
        }
    assert len(used) == 1
    (spare,) = set(opened) - used
    with pytest.raises(ValueError, match="closed"):
        spare.unary_unary("/x")(b"")
    client.close()


FORKED = """
import os, sys
from multigrain_client import Client

client = Client(sys.argv[1], timeout=20.0)
client.health()
child = os.fork()
if child == 0:
    code = 1
    try:
        client.health()
        client.close()
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(child, 0)[1] == 0
# The child has not closed the connection of its parent.
assert client.health()
client.close()
"""


def test_client_works_in_a_forked_process(server) -> None:
    # In a process of its own: in this one, gRPC's support of fork is off (tests/environment.py).
    subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, server.address],
        env=program_environment(),
        timeout=100,
        check=True,
    )
