"""Rate and number of calls per token."""

from __future__ import annotations

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.access.limits import TokenLimits
from multigrain_server.access.policy import Role
from multigrain_server.access.tokens import TokenEntry


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def entry(**limits: float) -> TokenEntry:
    return TokenEntry(name="a", roles=(Role.READ,), sha256="0" * 64, **limits)


def call(limits: TokenLimits, token: TokenEntry) -> float:
    """0, or the seconds that a refusal asks to wait."""
    try:
        with limits.enter(token):
            return 0
    except MultigrainError as error:
        if error.kind is not ErrorKind.OVERLOADED or error.retry_after is None:
            raise
        return error.retry_after


@pytest.mark.parametrize("rate", [0.5, 1.0, 4.0])
def test_rate_limit_allows_a_burst_of_one_second(rate: float) -> None:
    clock = Clock()
    limits, token = TokenLimits(clock), entry(calls_per_second=rate)
    burst = max(1, int(rate))
    assert [call(limits, token) for _ in range(burst)] == [0] * burst
    delay = call(limits, token)
    assert delay == pytest.approx(1 / rate)
    clock.now += delay / 2
    assert call(limits, token) == pytest.approx(delay / 2)
    clock.now += delay / 2
    assert call(limits, token) == 0
    clock.now += 1000  # what was not used does not add up
    assert [call(limits, token) for _ in range(burst)] == [0] * burst
    assert call(limits, token) > 0


def test_concurrent_calls_are_counted_until_they_end() -> None:
    limits, token = TokenLimits(), entry(concurrent_calls=2)
    with limits.enter(token), limits.enter(token):
        assert call(limits, token) > 0
    with pytest.raises(ZeroDivisionError), limits.enter(token):
        raise ZeroDivisionError
    with limits.enter(token):
        assert call(limits, token) == 0


def test_refused_calls_are_not_counted() -> None:
    clock = Clock()
    limits, token = TokenLimits(clock), entry(calls_per_second=1, concurrent_calls=1)
    with limits.enter(token):
        assert call(limits, token) > 0
    clock.now += 1
    assert call(limits, token) == 0
