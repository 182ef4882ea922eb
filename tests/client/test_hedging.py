"""hedge_after: a slow call is made a second time."""

from __future__ import annotations

import threading

import grpc
import numpy as np
import pytest

from multigrain_client import InvalidRequest, Unavailable
from tests.client.faults import Fault
from tests.client.pictures import expected, images_of


class SlowFirst:
    """Holds the first call of a method until released; the ones after it pass at once."""

    def __init__(self, state, fault=None):
        self.release = threading.Event()
        self._begin = state.begin
        self._fault = fault
        self._held = False
        self.gave_up = False
        state.begin = self.begin

    def begin(self, name, request, context):
        first, self._held = not self._held, True
        if first:
            self.gave_up = not self.release.wait(60)
        return self._begin(name, request, context)


@pytest.fixture
def slow(state):
    slow = SlowFirst(state)
    yield slow
    slow.release.set()


def test_the_second_call_answers_for_a_first_that_hangs(make_client, server, state, slow):
    client = make_client(server.address, hedge_after=0.05)
    images = images_of(3)
    np.testing.assert_array_equal(client.embed(images), expected(images))
    assert not slow.gave_up
    assert state.calls["Embed"] == 1  # the first is still held


def test_without_it_a_call_is_made_once(make_client, server, state):
    client = make_client(server.address)
    client.embed(images_of(1))
    assert state.calls["Embed"] == 1


def test_a_quick_call_is_made_once(make_client, server, state):
    client = make_client(server.address, hedge_after=5.0)
    client.embed(images_of(1))
    assert state.calls["Embed"] == 1


def test_an_error_of_the_quicker_call_waits_for_the_other(make_client, server, state, slow):
    state.faults["Embed"].append(Fault(grpc.StatusCode.INVALID_ARGUMENT, kind="INVALID_FIELD"))
    client = make_client(server.address, hedge_after=0.05)
    threading.Timer(0.5, slow.release.set).start()
    images = images_of(2)
    np.testing.assert_array_equal(client.embed(images), expected(images))
    assert state.calls["Embed"] == 2


def test_an_error_before_the_second_call_is_raised_at_once(make_client, server, state):
    state.faults["Embed"].append(Fault(grpc.StatusCode.INVALID_ARGUMENT, kind="INVALID_FIELD"))
    client = make_client(server.address, hedge_after=5.0)
    with pytest.raises(InvalidRequest):
        client.embed(images_of(1))
    assert state.calls["Embed"] == 1


def test_two_failures_are_one_attempt_of_the_retry_policy(make_client, server, state):
    state.faults["Embed"].extend([Fault()] * 100)
    client = make_client(server.address, hedge_after=5.0)
    with pytest.raises(Unavailable):
        client.embed(images_of(1))
    assert state.calls["Embed"] == 5


def test_other_calls_are_never_made_twice_at_once(make_client, server, state, slow):
    client = make_client(server.address, hedge_after=0.05)
    threading.Timer(0.4, slow.release.set).start()
    list(client.jobs())
    assert state.calls["ListJobs"] == 1
