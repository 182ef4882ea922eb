"""Delays between the restarts of an engine that keeps crashing."""

from __future__ import annotations

from multigrain_server.engines.supervisor import Backoff


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
