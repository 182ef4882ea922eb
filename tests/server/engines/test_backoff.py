"""Pauses between the starts of an engine that does not stay."""

from __future__ import annotations

from multigrain_server.engines.supervisor import Backoff


def test_the_first_replacement_does_not_wait_and_the_later_ones_wait_longer_and_longer() -> None:
    backoff = Backoff(0.1, 1.0)
    assert [round(backoff.next(), 3) for _ in range(7)] == [0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.reset()
    assert backoff.next() == 0


def test_a_start_that_is_forgiven_counts_for_nothing() -> None:
    backoff = Backoff(0.1, 1.0)
    for _ in range(5):
        assert backoff.next() == 0
        backoff.forgive()
    backoff.forgive()
    assert [backoff.next(), backoff.next()] == [0, 0.1]


def test_thousands_of_failures_do_not_overflow() -> None:
    backoff = Backoff(0.1, 30.0)
    assert max(backoff.next() for _ in range(5000)) == 30.0
