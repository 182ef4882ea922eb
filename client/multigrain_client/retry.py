"""When a failed call is made again, and after how long. Pure functions of their arguments."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from multigrain_client.errors import MultigrainClientError

# What gRPC itself reports when a connection breaks under a stream (a proxy that restarts, an
# RST_STREAM). Only streams that can be read again from a known position are retried on these.
_BROKEN_STREAM = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential back-off with full jitter.

    Attributes:
        attempts: calls made at most, the first included; 1 = no retries.
        initial: seconds, upper bound of the first delay.
        multiplier: growth of the bound from delay to delay.
        maximum: seconds, upper bound of every delay that the server did not ask for.
        stream_patience: seconds for which a broken stream is taken up again without a single
            new event or answer, before the error is raised.
    """

    attempts: int = 5
    initial: float = 0.1
    multiplier: float = 2.0
    maximum: float = 10.0
    stream_patience: float = 600.0

    def backoff(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row (>= 1), jittered.

        Full jitter, but never under a tenth of the bound: many clients whose server went away
        at once come back spread out, and none of them spins.
        """
        bound = min(self.maximum, self.initial * self.multiplier ** min(failures - 1, 64))
        return bound * random.uniform(0.1, 1.0)


def unary_delay(
    policy: RetryPolicy,
    error: MultigrainClientError,
    *,
    failures: int,
    idempotent: bool,
    remaining: float | None,
) -> float | None:
    """Seconds until the next attempt of a unary call; None = give up and raise.

    Retried is only what cannot do harm: RESOURCE_EXHAUSTED with a delay given by the server
    (it refused before doing anything; without a delay it is a message too large, say, and will
    never pass), UNAVAILABLE with such a delay, and UNAVAILABLE of an idempotent call that no
    server answered. (A server that says UNAVAILABLE and names no delay has tried: a model that
    did not load within minutes would be loaded five times in vain.)

    Args:
        failures: attempts that failed so far, >= 1.
        idempotent: whether the call may be made twice.
        remaining: seconds to the deadline; None = no deadline.
    """
    if failures >= policy.attempts:
        return None
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        safe = error.retry_after is not None
    elif error.code is grpc.StatusCode.UNAVAILABLE:
        safe = error.retry_after is not None or (idempotent and not error.kind)
    else:
        safe = False
    if not safe:
        return None
    return _within(_delay(policy, error, failures), remaining)


def stream_delay(
    policy: RetryPolicy, error: MultigrainClientError, *, failures: int, quiet: float
) -> float | None:
    """Seconds until a broken event stream is taken up again; None = give up and raise.

    Args:
        failures: breaks since the last event, >= 1.
        quiet: seconds since the last event (or since the stream was asked for).
    """
    if error.kind:
        # The server speaks: only "not now" is worth another try.
        again = error.code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
    else:
        again = error.code in _BROKEN_STREAM or error.retry_after is not None
    if not again:
        return None
    return _within(_delay(policy, error, failures), policy.stream_patience - quiet)


class BulkRetries:
    """When a broken bulk stream is opened again.

    Until its first answer, and whenever the server answers with a refusal, as often as a unary
    call is made. A server that is gone in the middle of the work is waited for, as event streams
    wait for it: whoever restarts it must not end a bulk run of hours.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._answered: float | None = None
        self._failures = 0
        self._counted = 0

    def answered(self) -> None:
        """To be called at every answer."""
        self._answered = self._clock()
        self._failures = self._counted = 0

    def delay(self, error: MultigrainClientError) -> float | None:
        """Seconds until the next attempt after ``error``; None = give up and raise."""
        self._failures += 1
        # Without a kind it is not our server that speaks but gRPC, whose words for a broken
        # connection are many.
        if self._answered is None or error.kind:
            self._counted += 1
        if self._counted >= self._policy.attempts:
            return None
        quiet = 0.0 if self._answered is None else self._clock() - self._answered
        return stream_delay(self._policy, error, failures=self._failures, quiet=quiet)


def _delay(policy: RetryPolicy, error: MultigrainClientError, failures: int) -> float:
    backoff = policy.backoff(failures)
    if error.retry_after is None:
        return backoff
    # The jitter comes on top: the server must not be met earlier than it asked.
    return error.retry_after + min(backoff, 0.25 * error.retry_after)


def _within(delay: float, remaining: float | None) -> float | None:
    return delay if remaining is None or delay < remaining else None
