"""The load generator counts what ends inside its window, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from benchmarks.callers import Plan, window

PLAN = Plan("", callers=4, warm_up=0.05, seconds=0.2)


def refusal(delay_ms: int) -> AioRpcError:
    trailer = Metadata(("grpc-retry-pushback-ms", str(delay_ms)))
    return AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, Metadata(), trailer)


@pytest.mark.timeout(60)
async def test_callers_that_wait_for_an_hour_do_not_lengthen_the_window() -> None:
    """Their sleep once counted as time in which nothing was answered."""
    calls = 0

    async def call(_number: int, _timeout: float) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2:  # two are answered once
            raise refusal(3_600_000)
        await asyncio.sleep(0.06)

    counts = await window(PLAN, call)
    assert counts.answered == 2
    assert counts.rate == counts.answered / counts.seconds


@pytest.mark.timeout(60)
async def test_answers_of_the_warm_up_do_not_count() -> None:
    calls = 0

    async def call(_number: int, _timeout: float) -> Any:
        nonlocal calls
        calls += 1
        if calls > 10:
            await asyncio.Event().wait()

    counts = await window(PLAN, call)
    assert (counts.answered, counts.answered_in_all) == (0, 10)


@pytest.mark.timeout(60)
async def test_calls_in_flight_at_the_end_are_dropped() -> None:
    async def call(_number: int, _timeout: float) -> Any:
        await asyncio.Event().wait()

    counts = await window(Plan("", rate=100.0, warm_up=0.0, seconds=0.1), call)
    assert (counts.answered, counts.codes) == (0, {})


@pytest.mark.timeout(60)
async def test_refusals_count_by_status_and_delay() -> None:
    async def call(number: int, _timeout: float) -> Any:
        await asyncio.sleep(0.01)
        if number % 4 == 0:
            raise refusal(1)
        raise AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, Metadata(), Metadata())

    counts = await window(PLAN, call)
    assert counts.retry_delays == counts.refused > 0
    assert counts.codes.keys() == {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}


@pytest.mark.timeout(60)
async def test_an_error_of_the_generator_is_raised() -> None:
    async def call(_number: int, _timeout: float) -> Any:
        await asyncio.sleep(0.1)
        raise TypeError("wrong")

    with pytest.raises(TypeError, match="wrong"):
        await window(PLAN, call)
