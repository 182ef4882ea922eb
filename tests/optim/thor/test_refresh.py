"""The decisions of the trace rule, its checks and its state."""

from __future__ import annotations

import math

import numpy as np
import pytest
from safetensors.numpy import load, save

from multigrain.optim.thor.refresh import Decision, FixedRule, TraceRule, decide, relative_change

UPDATE, KEEP, STOP = Decision.UPDATE, Decision.KEEP, Decision.STOP
SIZES = (4, 10)


def rule(
    w1: float = 0.01,
    w2: float = 0.001,
    frequency: int = 4,
    growth: float = 2.0,
    largest: int = 30,
) -> TraceRule:
    return TraceRule(SIZES, w1=w1, w2=w2, frequency=frequency, growth=growth, largest=largest)


def check(
    subject: TraceRule, step: int, traces: list[float], damping: float = 0.1
) -> tuple[list[int], list[int]]:
    """Runs a check and accepts all chosen layers; returns them and the active layers."""
    chosen = subject.check(step, traces, damping)
    for layer in chosen:
        subject.accept(layer)
    return chosen, subject.active


@pytest.mark.parametrize(
    ("change", "w1", "w2", "expected"),
    [
        (0.02, 0.01, 0.001, UPDATE),
        (0.01, 0.01, 0.001, KEEP),  # both thresholds belong to "keep"
        (0.005, 0.01, 0.001, KEEP),
        (0.001, 0.01, 0.001, KEEP),
        (0.0009, 0.01, 0.001, STOP),
        (0.0, 0.01, 0.001, STOP),
        (0.0, 0.01, 0.0, KEEP),  # w2 = 0, THOR itself, never stops
        (1e-12, 0.0, 0.0, UPDATE),  # THOR_NT
        (0.0, 0.0, 0.0, KEEP),
        (0.005, 0.005, 0.005, KEEP),
        (math.inf, 0.01, 0.001, UPDATE),
        (math.nan, 0.01, 0.001, KEEP),
    ],
)
def test_decide_compares_the_change_with_both_thresholds(
    change: float, w1: float, w2: float, expected: Decision
) -> None:
    assert decide(change, w1, w2) is expected


def test_delta_is_the_relative_change_of_the_damped_trace() -> None:
    a, g = np.diag([1.0, 2.0, 5.0]), np.diag([0.5, 0.25])
    positions, damping = 9.0, 0.2

    def damped_trace(scale: float) -> float:
        return float(np.trace(positions * np.kron(scale * a, g) + damping * np.eye(6)))

    old, size = positions * np.trace(a) * np.trace(g), damping * 6
    for scale in (1.0, 1.3, 0.4):
        expected = abs(damped_trace(scale) - damped_trace(1.0)) / damped_trace(1.0)
        assert relative_change(scale * old, old, size) == pytest.approx(expected)


def test_the_first_check_chooses_every_layer() -> None:
    assert check(rule(), 0, [1.0, 0.0]) == ([0, 1], [0, 1])


def test_each_layer_is_compared_with_its_last_accepted_trace() -> None:
    subject = rule(w2=0.0)
    check(subject, 0, [10.0, 10.0], damping=1e-9)
    assert check(subject, 4, [10.05, 10.5], damping=1e-9)[0] == [1]
    # Layer 0 was kept: it is compared with 10.0, not with 10.05.
    assert check(subject, 12, [10.12, 10.55], damping=1e-9)[0] == [0]


def test_strong_damping_reduces_delta() -> None:
    subject = rule(w2=0.0)
    check(subject, 0, [1.0, 1.0], damping=1.0)
    # 0.04 / (1 + 4) < 0.01 and 0.2 / (1 + 10) > 0.01
    assert check(subject, 4, [1.04, 1.2], damping=1.0)[0] == [1]


def test_decaying_damping_is_no_change() -> None:
    subject = rule()
    check(subject, 0, [1.0, 1.0], damping=1.0)
    assert check(subject, 4, [1.0, 1.0], damping=1e-3) == ([], [])


def test_a_stopped_layer_stays_stopped() -> None:
    subject = rule()
    check(subject, 0, [10.0, 10.0], damping=1e-9)
    assert check(subject, 4, [10.0, 10.05], damping=1e-9) == ([], [1])
    assert subject.stopped == 1
    # From here on only layer 1 is checked.
    assert check(subject, 12, [99.0], damping=1e-9) == ([1], [1])
    with pytest.raises(ValueError, match="longer"):
        subject.check(28, [99.0, 99.0], 1e-9)


def test_once_all_layers_are_stopped_no_check_is_due() -> None:
    subject = rule()
    check(subject, 0, [1.0, 1.0])
    check(subject, 4, [1.0, 1.0])
    assert subject.stopped == 2
    assert not any(subject.due(step) for step in (5, 12, 10**9))


def test_a_trace_is_accepted_only_after_inversion() -> None:
    subject = rule()
    assert subject.check(0, [math.nan, 1.0], 0.1) == [0, 1]
    subject.accept(1)
    assert check(subject, 4, [1.0, 1.005]) == ([0], [0, 1])
    # A later non-finite trace neither updates nor stops the layer.
    assert check(subject, 12, [math.nan, 5.0]) == ([1], [0, 1])
    assert check(subject, 28, [1.0, 5.0]) == ([], [])


@pytest.mark.parametrize(
    ("frequency", "growth", "largest", "checks"),
    [
        (4, 2.0, 30, [0, 4, 12, 28, 58, 88]),
        (4, 1.0, 30, [0, 4, 8, 12, 16]),
        (3, 1.5, 7, [0, 3, 7, 13, 20, 27]),  # 3, 4.5, 6.75, then 7
        (5, 1000.0, 6, [0, 5, 11, 17]),
    ],
)
def test_the_interval_of_checks_grows_to_the_longest(
    frequency: int, growth: float, largest: int, checks: list[int]
) -> None:
    subject = rule(frequency=frequency, growth=growth, largest=largest)
    seen = []
    for step in range(checks[-1] + 1):
        if subject.due(step):
            seen.append(step)
            check(subject, step, [float(step**2 + 1)] * 2)
    assert seen == checks


def test_unbounded_growth_does_not_overflow() -> None:
    subject = rule(growth=1000.0, largest=2)
    for number in range(200):
        check(subject, 2 * number, [float(number + 1) ** 2] * 2)
    assert not subject.due(399)
    assert subject.due(400)


def test_a_check_whose_step_was_skipped_stays_due() -> None:
    subject = rule()
    assert subject.due(0)
    assert subject.due(1)  # check() was not called
    check(subject, 1, [1.0, 1.0])
    assert [subject.due(step) for step in (2, 4, 5)] == [False, False, True]


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_the_state_continues_every_decision(at: int) -> None:
    history = [[10.0, 10.0], [10.3, 10.05], [10.36, 10.9], [10.6, 10.9]]

    def run(subject: TraceRule, first: int, last: int) -> list[tuple[list[int], list[int]]]:
        steps = [0, 4, 12, 28]
        found = []
        for index in range(first, last):
            assert subject.due(steps[index])
            assert not subject.due(steps[index] - 1)
            found.append(check(subject, steps[index], [history[index][x] for x in subject.active]))
        return found

    whole = rule()
    expected = run(whole, 0, 4)
    assert expected == [([0, 1], [0, 1]), ([0], [0, 1]), ([1], [0, 1]), ([0], [0])]
    before, after = rule(), rule()
    first = run(before, 0, at)
    saved = load(save(before.state()))  # as a checkpoint keeps it
    run(before, at, 4)  # the saved state must not change
    after.load_state(saved)
    assert [*first, *run(after, at, 4)] == expected


def test_a_fixed_frequency_begins_with_the_first_step() -> None:
    subject = FixedRule(3, 5)
    assert [step for step in range(12) if subject.due(step)] == [0, 5, 10]
    assert subject.check(5, [], 0.1) == [0, 1, 2]
