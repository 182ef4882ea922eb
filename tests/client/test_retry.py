"""Back-off, retries and their limits."""

from __future__ import annotations

from types import SimpleNamespace

import grpc

from multigrain_client import RetryPolicy, Unavailable
from multigrain_client.errors import Overloaded, from_rpc
from multigrain_client.retry import BulkRetries, UnaryRetries, stream_delay, unary_delay


def test_backoff_grows_to_its_maximum_and_is_never_zero():
    policy = RetryPolicy(initial=0.1, multiplier=2, maximum=1.0)
    for failures, bound in ((1, 0.1), (2, 0.2), (3, 0.4), (10, 1.0), (10_000, 1.0)):
        delays = [policy.backoff(failures) for _ in range(200)]
        assert 0.1 * bound <= min(delays) < 0.5 * bound
        assert 0.5 * bound < max(delays) <= bound


def test_retry_delay_is_never_shorter_than_the_server_requested():
    error = Overloaded(
        "full", kind="OVERLOADED", code=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=2.0
    )
    for _ in range(100):
        delay = unary_delay(RetryPolicy(), error, failures=1, idempotent=False, remaining=None)
        assert 2.0 <= delay <= 2.5


def test_no_retry_beyond_the_deadline_or_the_attempts():
    error = Unavailable("away", code=grpc.StatusCode.UNAVAILABLE)
    policy = RetryPolicy(attempts=3, initial=1.0)
    assert unary_delay(policy, error, failures=1, idempotent=True, remaining=0.05) is None
    assert unary_delay(policy, error, failures=3, idempotent=True, remaining=None) is None
    assert unary_delay(policy, error, failures=2, idempotent=True, remaining=None) is not None


def test_stream_is_not_reconnected_beyond_its_patience():
    error = Unavailable("away", code=grpc.StatusCode.UNAVAILABLE)
    policy = RetryPolicy(stream_patience=10)
    assert stream_delay(policy, error, failures=1, quiet=9.0) is not None
    assert stream_delay(policy, error, failures=1, quiet=10.1) is None


def test_bulk_stream_is_not_reconnected_beyond_its_patience():
    clock = SimpleNamespace(now=0.0)
    retries = BulkRetries(RetryPolicy(attempts=2, stream_patience=10), lambda: clock.now)
    error = Unavailable("away", code=grpc.StatusCode.UNAVAILABLE)
    assert retries.delay(error) is not None
    assert retries.delay(error) is None  # there was no response yet
    retries.answered()
    for clock.now in (1.0, 2.0, 5.0, 8.0):
        assert retries.delay(error) is not None
    clock.now = 10.1
    assert retries.delay(error) is None


def test_bulk_stream_counts_refusals_before_and_after_results():
    retries = BulkRetries(RetryPolicy(attempts=3), lambda: 0.0)
    retries.answered()
    refusal = Unavailable(
        "engine gone", kind="UNAVAILABLE", code=grpc.StatusCode.UNAVAILABLE, retry_after=1.0
    )
    assert retries.delay(refusal) >= 1.0
    assert retries.delay(refusal) >= 1.0
    assert retries.delay(refusal) is None


def test_negative_pushback_means_no_retry():
    def error(milliseconds: str) -> SimpleNamespace:
        return SimpleNamespace(
            code=lambda: grpc.StatusCode.RESOURCE_EXHAUSTED,
            details=lambda: "full",
            trailing_metadata=lambda: (("grpc-retry-pushback-ms", milliseconds),),
        )

    assert from_rpc(error("250"), "Embed", "here").retry_after == 0.25
    assert from_rpc(error("-1"), "Embed", "here").retry_after is None


def test_no_unary_retry_after_the_deadline_has_passed():
    error = Unavailable("away", code=grpc.StatusCode.UNAVAILABLE)
    quick = RetryPolicy(initial=1e-6)
    assert UnaryRetries(quick, 10.0, idempotent=True).delay(error) is not None
    assert UnaryRetries(quick, 0.0, idempotent=True).delay(error) is None
