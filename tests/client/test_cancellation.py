"""Canceled calls leave nothing running, and slow calls do not block others."""

from __future__ import annotations

import asyncio
import threading
import time

import grpc
import pytest

from multigrain.v1 import job_pb2
from multigrain_client import AsyncClient, Client, DeadlineExceeded, InvalidRequest
from tests.client.events import job_of
from tests.client.faults import Fault, abort
from tests.client.held import Held
from tests.client.pictures import images_of


def test_wait_for_a_silent_job_ends_at_its_timeout(client, state):
    state.jobs["job-1"] = job_of("job-1", state=job_pb2.JOB_STATE_RUNNING)
    held = Held(state, "StreamEvents")
    timer = threading.Timer(30.0, held.release)
    timer.start()
    try:
        with pytest.raises(DeadlineExceeded, match="still RUNNING"):
            client.wait("job-1", timeout=0.3)
        assert timer.is_alive()  # the server had not sent anything
    finally:
        timer.cancel()
        held.release()


def test_embed_reads_images_only_as_fast_as_calls_are_made(make_client, server, state):
    taken = 0

    def source():
        nonlocal taken
        for data in images_of(100):
            taken += 1
            yield data

    held = Held(state, "Embed")
    client = make_client(server.address, concurrency=2, batch_size=1)
    call = threading.Thread(target=client.embed, args=(source(),))
    call.start()
    try:
        for _ in range(2):
            assert held.arrived.acquire(timeout=10)
        time.sleep(0.3)
        assert taken <= 4
    finally:
        held.release()
        call.join()
    assert taken == 100


async def test_error_of_one_call_does_not_wait_for_the_others(server, state):
    held = Held(state, "Embed", lambda request: request.images[0] != b"wrong")
    begin = state.begin

    def refuse(name, request, context):
        if request.images[0] == b"wrong":
            abort(context, Fault(grpc.StatusCode.INVALID_ARGUMENT, kind="INVALID_FIELD"))
        return begin(name, request, context)

    state.begin = refuse
    try:
        async with AsyncClient(server.address, batch_size=1, timeout=20.0) as client:
            began = time.monotonic()
            with pytest.raises(InvalidRequest):
                await client.embed([b"wrong", *images_of(3)])
            assert time.monotonic() - began < 10.0
    finally:
        held.release()


def test_reader_thread_ends_with_its_stream(server):
    with Client(server.address) as client:
        stream = client.embed_stream(images_of(100), batch_size=1, window=2)
        next(stream)
        assert _readers()
        stream.close()
        end = time.monotonic() + 10
        while _readers():
            assert time.monotonic() < end
            time.sleep(0.01)


def _readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "multigrain-embed-stream"]


async def test_reader_task_ends_with_its_stream(server):
    async with AsyncClient(server.address) as client:
        stream = client.embed_stream(images_of(100), batch_size=1, window=2)
        await anext(stream)
        await stream.aclose()
        reading = [task for task in asyncio.all_tasks() if "BulkEmbedding._read" in repr(task)]
        assert not reading
