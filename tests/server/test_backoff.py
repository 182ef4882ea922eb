"""Delays between restarts."""

from __future__ import annotations

from multigrain_server.backoff import Backoff, backoff_seconds


def test_the_wait_doubles_up_to_its_maximum() -> None:
    assert [backoff_seconds(n, 0.5, 3.0) for n in range(6)] == [0.0, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_any_number_of_failures_has_a_finite_wait() -> None:
    assert backoff_seconds(5000, 0.5, 60.0) == 60.0
    assert backoff_seconds(5000, 0.5) < float("inf")


def test_the_first_restart_does_not_wait_and_later_ones_wait_longer() -> None:
    backoff = Backoff(0.1, 1.0)
    assert [round(backoff.next(), 3) for _ in range(7)] == [0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.reset()
    assert backoff.next() == 0


def test_a_forgiven_start_does_not_count() -> None:
    backoff = Backoff(0.1, 1.0)
    for _ in range(5):
        assert backoff.next() == 0
        backoff.forgive()
    backoff.forgive()
    assert [backoff.next(), backoff.next()] == [0, 0.1]


def test_thousands_of_failures_do_not_overflow() -> None:
    backoff = Backoff(0.1, 30.0)
    assert max(backoff.next() for _ in range(5000)) == 30.0
