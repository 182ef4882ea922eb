"""embed_stream."""

from __future__ import annotations

import numpy as np
import pytest

from multigrain_client import Unavailable
from tests.client.drivers import take_until_error
from tests.client.faults import Fault
from tests.client.pictures import expected, images_of


def test_embed_stream_yields_results_in_input_order(client):
    images = images_of(100)
    answers = list(client.embed_stream(iter(images), batch_size=7))
    assert [answer.index for answer in answers] == list(range(100))
    np.testing.assert_array_equal(np.stack([answer.vector for answer in answers]), expected(images))


def test_embed_stream_reports_failed_images_in_input_order(client):
    images = [b"0" * 8, b"bad", "/nowhere/a.png", b"1" * 8, *["/nowhere/b.png"] * 30]
    answers = list(client.embed_stream(images, batch_size=2, window=1))
    assert [answer.index for answer in answers] == list(range(34))
    assert [answer.error is None for answer in answers[:4]] == [True, False, False, True]
    assert answers[2].error.name == "/nowhere/a.png"


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_embed_stream_reconnects_without_losing_or_repeating_images(client, state, cut):
    state.faults["EmbedStream"].extend([Fault(after=cut)] * 4 if cut else [Fault()] * 3)
    images = images_of(60)
    answers = list(client.embed_stream(images, batch_size=3, window=4))
    assert [answer.index for answer in answers] == list(range(60))
    np.testing.assert_array_equal(np.stack([answer.vector for answer in answers]), expected(images))
    assert state.calls["EmbedStream"] >= 4


def test_embed_stream_reads_input_only_as_fast_as_results_arrive(client):
    taken = 0

    def source():
        nonlocal taken
        for data in images_of(1000):
            taken += 1
            yield data

    stream = client.embed_stream(source(), batch_size=2, window=3)
    next(stream)
    assert taken < 100
    stream.close()


def test_embed_stream_reports_many_unreadable_files_while_reading(client):
    taken = 0

    def source():
        nonlocal taken
        yield b"0" * 8
        for number in range(500):
            taken += 1
            yield f"/nowhere/{number}.png"
        yield b"1" * 8

    stream = client.embed_stream(source(), batch_size=2, window=3)
    answers = [next(stream) for _ in range(50)]
    assert taken < 200
    answers += stream
    assert [answer.index for answer in answers] == list(range(502))
    assert [answer.index for answer in answers if answer.error is None] == [0, 501]


def test_embed_stream_raises_exceptions_of_its_input(client):
    def source():
        yield from images_of(5)
        raise RuntimeError("the disk is gone")

    answers = []
    with pytest.raises(RuntimeError, match="the disk is gone"):
        take_until_error(client.embed_stream(source(), batch_size=2), answers)
    assert [answer.index for answer in answers] == [0, 1, 2, 3]


def test_embed_stream_waits_for_a_server_that_disappears(client, state):
    # Far more faults than retries of a unary call.
    state.faults["EmbedStream"].extend([Fault(after=1), *[Fault()] * 20])
    answers = list(client.embed_stream(images_of(9), batch_size=3))
    assert [answer.index for answer in answers] == list(range(9))
    assert state.calls["EmbedStream"] == 22


def test_embed_stream_raises_if_the_server_stays_unreachable(client, state):
    state.faults["EmbedStream"].extend([Fault()] * 100)
    with pytest.raises(Unavailable):
        list(client.embed_stream(images_of(5)))
    assert state.calls["EmbedStream"] == 5


async def test_embed_stream_accepts_an_asynchronous_iterable(server):
    from multigrain_client import AsyncClient

    async def source():
        for data in images_of(10):
            yield data

    async with AsyncClient(server.address) as client:
        answers = [answer async for answer in client.embed_stream(source(), batch_size=4)]
    assert [answer.index for answer in answers] == list(range(10))
