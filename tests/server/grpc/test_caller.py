"""What a call says about its caller."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from multigrain_server.grpc.interceptor import deadline_ns

NOW = 1_000_000_000


@pytest.mark.parametrize(
    ("remaining", "deadline"),
    [
        (2.5, NOW + 2_500_000_000),
        (None, 0),
        (9.2e9, 0),  # what gRPC says of a call that has none
        (-0.1, NOW + 1),  # passed already: not none
    ],
)
def test_the_deadline_of_a_call_is_on_the_monotonic_clock(
    remaining: float | None, deadline: int
) -> None:
    context = SimpleNamespace(time_remaining=lambda: remaining)
    assert deadline_ns(context, NOW) == deadline  # type: ignore[arg-type]
