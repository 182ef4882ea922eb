"""Refreshes change inverses, running average and rule, or nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mindspore import Tensor, nn

from multigrain.model.layers import Conv2d, Dense
from multigrain.optim.non_finite import NonFinite
from multigrain.optim.reduce import Reducer
from multigrain.optim.thor.curvature import Curvature, RefreshResult
from multigrain.optim.thor.taps import ROW_LIMIT
from multigrain.specs.training import ThorSpec

pytestmark = pytest.mark.mindspore

DAMPING = 0.04
SIDES = ((3, 2), (2, 4))  # inputs and outputs of two dense layers


def curvature(**options: Any) -> Curvature:
    net = nn.SequentialCell([Dense(*sides) for sides in SIDES])
    spec = ThorSpec(**{"frequency": 1, "frequency_growth": 1.0, **options})
    return Curvature(net, spec, steps_per_epoch=100, reducer=Reducer(1))


def some(seed: int, scale: float = 1.0) -> list[np.ndarray]:
    """Factors of both layers: all A, then all G; the first layer's have this scale."""
    rng = np.random.default_rng(seed)
    found = []
    for side in (0, 1):
        for layer, sides in enumerate(SIDES):
            rows = rng.standard_normal((20, sides[side])) * (scale if layer == 0 else 1)
            found.append((rows.T @ rows / 20).astype(np.float32)[None])
    return found


def check(subject: Curvature, factors: list[np.ndarray], step: int) -> RefreshResult:
    traces = np.array([np.trace(f[0]) for f in factors], np.float64).reshape(2, 2)
    return subject.refresh([Tensor(f) for f in factors], traces, DAMPING, step)


def inverses(subject: Curvature) -> list[np.ndarray]:
    return [p.asnumpy()[0] for p in subject.inverses]


def inverted(factors: list[np.ndarray]) -> list[np.ndarray]:
    return [np.linalg.inv(f[0].astype(np.float64) + 0.2 * np.eye(len(f[0]))) for f in factors]


def mean_of(history: list[list[np.ndarray]], decay: float) -> list[np.ndarray]:
    weights = decay ** np.arange(len(history))[::-1]
    return [np.average(x, 0, weights) for x in zip(*history, strict=True)]


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_without_an_average_each_refresh_uses_only_its_own_factors() -> None:
    subject = curvature()
    for step in range(3):
        assert check(subject, some(step), step) == RefreshResult(refreshed=2)
        assert_equal(inverses(subject), inverted(some(step)))


def test_with_an_average_the_inverses_are_those_of_the_weighted_mean() -> None:
    subject = curvature(factor_average=0.7)
    history = [some(step) for step in range(3)]
    for step, factors in enumerate(history):
        check(subject, factors, step)
    assert_equal(inverses(subject), inverted(mean_of(history, 0.7)))


def test_the_rule_uses_the_trace_of_the_mean() -> None:
    """Layer 0 grows so slowly that its mean's trace exceeds the threshold at the third check only,
    while its own trace exceeds it at the second."""
    history = [some(0), some(0, 1.03), some(0, 1.06)]
    subject = curvature(factor_average=0.9, refresh="trace", w1=0.08, w2=0.0)
    results = [check(subject, factors, step) for step, factors in enumerate(history)]
    assert results == [RefreshResult(2, 0), RefreshResult(0, 2), RefreshResult(1, 1)]

    def trace(factors: list[np.ndarray]) -> float:
        return float(np.trace(factors[0][0]) * np.trace(factors[2][0]))

    damped = DAMPING * 6
    own, *means = [
        (trace(factors) - trace(history[0])) / (trace(history[0]) + damped)
        for factors in (history[1], mean_of(history[:2], 0.9), mean_of(history, 0.9))
    ]
    assert own > 0.08
    assert means[0] < 0.08 < means[1]
    expected = inverted(mean_of(history, 0.9))
    assert_equal([inverses(subject)[0], inverses(subject)[2]], [expected[0], expected[2]])


@pytest.mark.parametrize("average", [0.0, 0.8])
def test_a_failed_inverse_changes_nothing(
    average: float,
) -> None:
    subject = curvature(factor_average=average, refresh="trace", w1=0.0, w2=0.0)
    check(subject, some(0), 0)
    before, held = subject.state(), inverses(subject)
    broken = some(1)
    broken[3][0, 0, 1] = np.nan  # G of the second layer; its trace is finite
    result = check(subject, broken, 1)
    assert result == RefreshResult(problem=NonFinite("inverse", "1"))
    assert subject.due(1)
    after = subject.state()
    assert after.keys() == before.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, err_msg=name)
    for one, other in zip(inverses(subject), held, strict=True):
        np.testing.assert_array_equal(one, other)
    assert check(subject, some(1), 1).refreshed == 2


def test_a_non_finite_trace_is_reported_before_anything_changes() -> None:
    subject = curvature(refresh="trace")
    broken = some(0)
    broken[1][0, 1, 1] = np.inf
    assert check(subject, broken, 0).problem == NonFinite("A", "1")
    assert subject.due(0)


@pytest.mark.parametrize(
    ("options", "due"),
    [
        ({"frequency": 4, "early_refreshes": (1, 6)}, [0, 1, 4, 6, 8, 12, 16]),
        ({"frequency": 4, "early_refreshes": (1, 6), "refresh": "trace"}, [0, 1, 4, 6, 8, 12, 16]),
        ({"frequency": 2, "frequency_growth": 2.0, "refresh": "trace"}, [0, 2, 6, 14]),
        (
            {"frequency": 2, "frequency_growth": 2.0, "frequency_max": 5, "refresh": "trace"},
            [0, 2, 6, 11, 16],
        ),
    ],
    ids=["fixed", "early", "growth", "longest"],
)
def test_the_options_determine_when_a_refresh_is_due(
    options: dict[str, Any], due: list[int]
) -> None:
    subject = curvature(w1=0.0, **options)
    found = []
    for step in range(18):
        if subject.due(step):
            found.append(step)
            assert check(subject, some(step), step).refreshed == 2
    assert found == due


def test_the_rules_thresholds_are_the_specifications() -> None:
    """Layer 0 changes by less than w1 and more than w2, layer 1 by less than w2."""
    subject = curvature(refresh="trace", w1=0.2, w2=0.05)
    check(subject, some(0), 0)
    assert check(subject, some(0, 1.03), 1) == RefreshResult(0, 2)
    assert subject.stopped == 1
    assert check(subject, some(0, 1.1), 2) == RefreshResult(1, 0)


class TwoWorkers(Reducer):
    """Has a world of two without communication."""

    def __init__(self) -> None:
        super().__init__(1)
        self.world = 2


def test_the_row_limit_is_divided_among_the_workers() -> None:
    net = nn.SequentialCell([Conv2d(3, 4, 3)])
    subject = Curvature(net, ThorSpec(), steps_per_epoch=1, reducer=TwoWorkers())
    (layer,) = subject.layers
    limits = [layer.cell.input_tap.row_limit, layer.cell.output_tap.row_limit]
    assert limits == [ROW_LIMIT // 2] * 2
