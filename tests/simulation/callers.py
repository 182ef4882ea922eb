"""Simulated callers: what they send, and what they do after a refusal."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import grpc

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_client.errors import MultigrainClientError
from multigrain_client.retry import RetryPolicy, UnaryRetries
from multigrain_server.engines.images import ImageRequest
from multigrain_server.serving.service import ImageService
from tests.simulation.clock import VirtualClock

Behavior = Literal["obedient", "client", "greedy", "canceling"]
Outcome = Literal["answered", "refused", "late", "unavailable", "unfinished"]
# Refused without a delay to wait for, or behind a broken connection, everybody waits a little.
_LEAST_WAIT = 0.01
_SERVER_DOWN = 0.1
_LATENCY = 0.001


@dataclass(frozen=True)
class Group:
    """Callers that are equal. Each sends its next call when the previous one has ended.

    Attributes:
        name: for messages.
        callers: how many.
        timeout: bounds of the timeouts in seconds; each caller draws its own.
        images: of a call; drawn for each.
        sides: sides in pixels of the images, drawn for each: what decoding them costs.
        behavior: "obedient" callers wait as long as a refusal says, then call again with the
            whole timeout; "client" callers retry as the Python client does, within one timeout;
            "greedy" ones call again after ``pause``; "canceling" ones do so too, and cancel each
            call after ``pause``, whatever its timeout.
        pause: seconds.
        token: of the callers; groups with the same one are one client.
        clients: so many tokens that begin with ``token``, instead of one.
        model: that they call.
    """

    name: str
    callers: int
    timeout: tuple[float, float] = (2.0, 2.0)
    images: Sequence[int] = (1,)
    sides: Sequence[int] = (300,)
    behavior: Behavior = "obedient"
    pause: float = 0.05
    token: str = "everybody"
    clients: int = 1
    model: str = "a"


@dataclass(slots=True)
class Call:
    """One attempt: times in seconds of the simulation, 0 = never."""

    group: Group
    caller: int
    images: int
    began: float
    deadline: float
    accepted: float = 0.0
    ended: float = 0.0
    outcome: Outcome = "unfinished"
    reason: str = ""


#: The attempt of the task that runs.
current_call: ContextVar[Call] = ContextVar("current_call")


class Caller:
    """One of a group.

    Args:
        number: among all callers.
        group: that it belongs to.
        service: that it calls.
        clock: of the simulation.
        rng: of what it draws.
        calls: gets all its attempts.
    """

    def __init__(
        self,
        number: int,
        group: Group,
        service: ImageService,
        clock: VirtualClock,
        rng: random.Random,
        calls: list[Call],
    ) -> None:
        self._number = number
        self._group = group
        self._service = service
        self._clock = clock
        self._rng = rng
        self._calls = calls
        self._timeout = rng.uniform(*group.timeout)
        self._client = f"{group.token}-{number % group.clients}"

    async def run(self) -> None:
        """Calls until it is canceled."""
        await asyncio.sleep(self._rng.random() * 0.05)
        act = self._with_retries if self._group.behavior == "client" else self._once
        while True:
            pause = await act()
            await asyncio.sleep(pause)

    async def _once(self) -> float:
        """One attempt. Returns the seconds to wait before the next call."""
        error = await self._attempt(self._timeout, self._drawn())
        if error is None:
            return 0.0
        if self._group.behavior in ("greedy", "canceling"):
            return self._group.pause
        return max(error.retry_after or 0.0, _LEAST_WAIT)

    async def _with_retries(self) -> float:
        """As the Python client; an application waits as long as the last refusal says."""
        retries = UnaryRetries(RetryPolicy(), self._timeout, idempotent=True)
        images = self._drawn()
        while True:
            remaining = retries.remaining
            assert remaining is not None
            error = await self._attempt(remaining, images)
            if error is None:
                return 0.0
            delay = retries.delay(_client_error(error))
            if delay is None:
                return max(error.retry_after or 0.0, _LEAST_WAIT)
            await asyncio.sleep(delay)

    def _drawn(self) -> list[bytes]:
        group, choice = self._group, self._rng.choice
        return [header(choice(group.sides)) for _ in range(choice(group.images))]

    async def _attempt(self, seconds: float, images: list[bytes]) -> MultigrainError | None:
        """Calls once; returns why there was no answer."""
        clock = self._clock
        call = Call(self._group, self._number, len(images), clock.elapsed, clock.elapsed + seconds)
        self._calls.append(call)
        current_call.set(call)
        deadline_ns = clock.ns + int(1e9 * seconds)
        await asyncio.sleep(_LATENCY * self._rng.lognormvariate(0.0, 0.5))
        patience = self._group.pause if self._group.behavior == "canceling" else seconds
        error: MultigrainError | None = None
        try:
            async with asyncio.timeout(call.began + patience - clock.elapsed):
                request = ImageRequest(
                    model=self._group.model,
                    images=images,
                    client=self._client,
                    connection=str(self._number),
                    deadline_ns=deadline_ns,
                    received_ns=clock.ns,
                )
                await self._service.infer(request)
                await asyncio.sleep(_LATENCY * self._rng.lognormvariate(0.0, 0.5))
            call.outcome = "answered"
        except TimeoutError:
            error = MultigrainError(ErrorKind.DEADLINE, "the caller's timeout")
            call.outcome = "late"
        except MultigrainError as raised:
            error = raised
            call.outcome = _OUTCOMES.get(error.kind, "unavailable")
            call.reason = error.message
            await asyncio.sleep(_LATENCY * self._rng.lognormvariate(0.0, 0.5))
        call.ended = clock.elapsed
        return error


_OUTCOMES: dict[ErrorKind, Outcome] = {
    ErrorKind.OVERLOADED: "refused",
    ErrorKind.DEADLINE: "late",
}
_CODES = {
    ErrorKind.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def _client_error(error: MultigrainError) -> MultigrainClientError:
    code = _CODES.get(error.kind, grpc.StatusCode.UNAVAILABLE)
    return MultigrainClientError(error.message, code=code, retry_after=error.retry_after)


def header(side: int) -> bytes:
    """A bitmap's header: the daemon estimates from it what decoding the image takes."""
    size = 54 + side * side * 3
    return struct.pack("<2sIIIIiiHHIIiiII", b"BM", size, 0, 54, 40, side, side, 1, 24, *[0] * 6)
