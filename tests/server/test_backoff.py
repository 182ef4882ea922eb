"""Waits between restarts."""

from __future__ import annotations

from multigrain_server.backoff import backoff_seconds


def test_the_wait_doubles_up_to_its_maximum() -> None:
    assert [backoff_seconds(n, 0.5, 3.0) for n in range(6)] == [0.0, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_any_number_of_failures_has_a_finite_wait() -> None:
    assert backoff_seconds(5000, 0.5, 60.0) == 60.0
    assert backoff_seconds(5000, 0.5) < float("inf")
