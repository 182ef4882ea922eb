"""When a failed call is retried, and after how long."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import grpc

from multigrain_client.errors import InvalidRequest, MultigrainClientError

# The statuses that gRPC itself reports when a connection breaks under a stream (a proxy restarts,
# RST_STREAM). Only streams that can continue from a known position are retried on these.
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


# Seconds. gRPC takes deadlines in the far future as ones that have passed.
LONGEST_TIMEOUT = 1e9


def check_timeout(seconds: float | None, name: str = "timeout") -> float | None:
    """The timeout, if it is one; None = no limit.

    Raises:
        InvalidRequest: for anything but a number of seconds above 0.
    """
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, Real):
        raise InvalidRequest(f"{name}: must be a number of seconds, not {seconds!r}")
    if math.isnan(seconds) or not 0 < seconds <= LONGEST_TIMEOUT:
        raise InvalidRequest(
            f"{name}: {float(seconds):g} is not a number of seconds above 0, at most "
            f"{LONGEST_TIMEOUT:g}"
        )
    return float(seconds)


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential back-off with full jitter.

    Attributes:
        attempts: maximum number of calls, including the first; 1 = no retries.
        initial: seconds, upper bound of the first delay.
        multiplier: growth of the bound from one delay to the next.
        maximum: seconds, upper bound of every delay that the server did not request.
        stream_patience: seconds without a new event or result after which a broken stream is no
            longer reconnected and the error is raised.
    """

    attempts: int = 5
    initial: float = 0.1
    multiplier: float = 2.0
    maximum: float = 10.0
    stream_patience: float = 600.0

    def backoff(self, failures: int) -> float:
        """Seconds to wait after ``failures`` (>= 1) consecutive failures.

        Full jitter, but at least a tenth of the bound: many clients that lose their server at the
        same moment reconnect spread out, and none of them spins.
        """
        bound = min(self.maximum, self.initial * self.multiplier ** min(failures - 1, 64))
        return bound * random.uniform(0.1, 1.0)


class Deadline:
    """A timeout that several calls share. None = never."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def remaining(self) -> float | None:
        """Seconds left, at least a millisecond (gRPC does not accept zero)."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.001)

    @property
    def passed(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def within(self, delay: float) -> float:
        """The delay, limited to the time left."""
        return delay if self.remaining is None else min(delay, self.remaining)


def unary_delay(
    policy: RetryPolicy,
    error: MultigrainClientError,
    *,
    failures: int,
    idempotent: bool,
    remaining: float | None,
) -> float | None:
    """Seconds until the next attempt of a unary call; None = do not retry.

    Retried are only calls that the server certainly has not executed, or that may run twice:
    RESOURCE_EXHAUSTED and UNAVAILABLE with a delay sent by the server (it refused before doing
    anything), and UNAVAILABLE of an idempotent call that no server answered. RESOURCE_EXHAUSTED
    without a delay is permanent, e.g. a message that is too large; UNAVAILABLE from the server
    without a delay means that it tried and failed, e.g. to load a model.

    Args:
        failures: failed attempts so far, >= 1.
        idempotent: whether the call may be executed twice.
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
    """Seconds until a broken stream is reconnected; None = do not reconnect.

    Args:
        failures: breaks since the last message, >= 1.
        quiet: seconds since the last message (or since the stream was opened).
    """
    if error.kind:
        # The server itself refused: retry only "not now".
        again = error.code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
    else:
        again = error.code in _BROKEN_STREAM or error.retry_after is not None
    if not again:
        return None
    return _within(_delay(policy, error, failures), policy.stream_patience - quiet)


class UnaryRetries:
    """The retries of one unary call, all within one deadline.

    Args:
        policy: when to retry.
        timeout: seconds for all attempts together; None = no deadline.
        idempotent: whether the call may be executed twice.
    """

    def __init__(self, policy: RetryPolicy, timeout: float | None, *, idempotent: bool) -> None:
        self._policy = policy
        self._deadline = Deadline(timeout)
        self._idempotent = idempotent
        self._failures = 0

    @property
    def remaining(self) -> float | None:
        """Seconds for the next attempt."""
        return self._deadline.remaining

    def delay(self, error: MultigrainClientError) -> float | None:
        """Seconds until the next attempt after ``error``; None = do not retry."""
        self._failures += 1
        if self._deadline.passed:
            return None
        return unary_delay(
            self._policy,
            error,
            failures=self._failures,
            idempotent=self._idempotent,
            remaining=self._deadline.remaining,
        )


class BulkRetries:
    """The reconnects of one bulk stream.

    Before the first result, and whenever the server itself refuses, the stream is retried as often
    as a unary call. If the server disappears in the middle, the client waits for it as long as an
    event stream would: restarting the server must not end a bulk run of hours.

    Args:
        policy: when to retry.
        clock: seconds, monotonic.
    """

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._answered: float | None = None
        self._failures = 0
        self._counted = 0

    def answered(self) -> None:
        """To be called for every response."""
        self._answered = self._clock()
        self._failures = self._counted = 0

    def delay(self, error: MultigrainClientError) -> float | None:
        """Seconds until the stream is reconnected after ``error``; None = do not retry."""
        self._failures += 1
        # Without a kind the error comes from gRPC, which has many messages for a broken connection.
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
    # The jitter is added: the delay is never shorter than the server requested.
    return error.retry_after + min(backoff, 0.25 * error.retry_after)


def _within(delay: float, remaining: float | None) -> float | None:
    return delay if remaining is None or delay < remaining else None
