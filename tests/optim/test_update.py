"""The update rule against NumPy."""

from __future__ import annotations

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from multigrain.optim.thor.blocks import BlockLayout
from multigrain.optim.thor.preconditioner import LayerPreconditioner
from multigrain.optim.update import ParameterGroup, TrainableParameter, Update

pytestmark = pytest.mark.mindspore


def parameter(name: str, values: np.ndarray) -> Parameter:
    return Parameter(Tensor(values.astype(np.float32)), name=name)


def scalar(value: float) -> Tensor:
    return Tensor(np.float32(value))


def test_three_steps_of_every_parameter_group() -> None:
    rng = np.random.default_rng(0)
    start = rng.standard_normal((3, 4)).astype(np.float32)
    inverse = np.diag([1.0, 2.0, 3.0]).astype(np.float32)[None]
    cell = LayerPreconditioner("w", BlockLayout.of(4, 8), BlockLayout.of(3, 8))
    cell.g_inverse.set_data(Tensor(inverse))
    weight, bias = parameter("w", start), parameter("b", start[0])
    p, beta = parameter("p", np.array(1.2)), parameter("beta", np.array(1.2))
    update = Update(
        [
            TrainableParameter(weight, ParameterGroup.WEIGHTS, cell),
            TrainableParameter(bias, ParameterGroup.WEIGHTS),
            TrainableParameter(p, ParameterGroup.GEM_P),
            TrainableParameter(beta, ParameterGroup.MARGIN_BETA),
        ],
        [],
        momentum=0.8,
        weight_decay=0.1,
        clipped=True,
    )
    w, b, q, t = start.astype(np.float64), start[0].astype(np.float64), 1.2, 1.2
    mw, mb, mq, mt = np.zeros((3, 4)), np.zeros(4), 0.0, 0.0
    for step in range(3):
        gw, gb = rng.standard_normal((3, 4)), rng.standard_normal(4)
        gq, gt = 0.9, float(rng.standard_normal())
        rate, boundary, clip = 0.1 / (step + 1), 0.3, 0.5
        tensors = [Tensor(np.float32(g)) for g in (gw, gb, gq, gt)]
        update(scalar(rate), scalar(boundary), scalar(clip), *tensors)
        # The decay is added after preconditioning; p and beta have none.
        mw = 0.8 * mw + (inverse[0] @ gw * clip + 0.1 * w)
        mb = 0.8 * mb + (gb * clip + 0.1 * b)
        mq, mt = 0.8 * mq + gq * clip, 0.9 * mt + gt * clip
        w, b, q, t = w - rate * mw, b - rate * mb, max(q - rate * mq, 1.0), t - boundary * mt
        for found, expected in ((weight, w), (bias, b), (p, q), (beta, t)):
            np.testing.assert_allclose(found.asnumpy(), expected, rtol=1e-5, atol=1e-6)


def test_gem_p_is_at_least_one() -> None:
    p = parameter("p", np.array(1.5))
    update = Update(
        [TrainableParameter(p, ParameterGroup.GEM_P)],
        [],
        momentum=0.9,
        weight_decay=0.1,
        clipped=False,
    )
    update(scalar(1.0), scalar(1.0), scalar(1.0), scalar(7.0))
    assert float(p.asnumpy()) == 1.0


def test_statistics_of_a_skipped_step_are_undone() -> None:
    mean = parameter("mean", np.array([1.0, 2.0]))
    weight = parameter("w", np.array([1.0]))
    update = Update(
        [TrainableParameter(weight, ParameterGroup.WEIGHTS)],
        [mean],
        momentum=0.9,
        weight_decay=0.0,
        clipped=False,
    )
    mean.set_data(Tensor(np.array([3.0, 4.0], np.float32)))
    update(scalar(0.1), scalar(0.1), scalar(1.0), Tensor(np.ones(1, np.float32)))
    mean.set_data(Tensor(np.array([np.nan, 5.0], np.float32)))
    update.restore_statistics()
    assert mean.asnumpy().tolist() == pytest.approx([3.0, 4.0])


@pytest.mark.parametrize(("bound", "binds"), [(1e-3, True), (1e3, False)])
def test_kl_clipping_limits_only_the_preconditioned_step(bound: float, binds: bool) -> None:
    rng = np.random.default_rng(0)
    inverses = [np.diag(rng.random(n) + 0.5).astype(np.float32) for n in (3, 2)]
    trained = []
    for index, inverse in enumerate(inverses):
        rows = len(inverse)
        cell = LayerPreconditioner(f"w{index}", BlockLayout.of(4, 8), BlockLayout.of(rows, 8))
        cell.g_inverse.set_data(Tensor(inverse[None]))
        weight = parameter(f"w{index}", np.zeros((rows, 4)))
        trained.append(TrainableParameter(weight, ParameterGroup.WEIGHTS, cell))
    trained.append(TrainableParameter(parameter("b", np.zeros(5)), ParameterGroup.WEIGHTS))
    update = Update(trained, [], momentum=0.9, weight_decay=0.0, clipped=False, kl_clip=bound)
    gradients = [rng.standard_normal(t.parameter.shape) for t in trained]
    rate = 0.2
    update(scalar(rate), scalar(0.0), scalar(1.0), *(Tensor(np.float32(g)) for g in gradients))
    found = [t.parameter.asnumpy() / -rate for t in trained]
    expected = [p @ g for p, g in zip(inverses, gradients, strict=False)]
    length = rate**2 * sum((g * p).sum() for g, p in zip(gradients, expected, strict=False))
    nu = min(1.0, np.sqrt(bound / length))
    assert (nu < 0.2) == binds
    for index, step in enumerate(expected):
        np.testing.assert_allclose(found[index], nu * step, rtol=1e-5)
    np.testing.assert_allclose(found[2], gradients[2], rtol=1e-6)
    if binds:  # the bound is met exactly
        moved = sum(
            (g * f).sum() ** 2 / (g * p).sum()
            for g, f, p in zip(gradients, found, expected, strict=False)
        )
        assert rate**2 * moved == pytest.approx(bound, rel=1e-4)


def test_kl_clipping_of_a_zero_step_does_not_divide_by_zero() -> None:
    cell = LayerPreconditioner("w", BlockLayout.of(4, 8), BlockLayout.of(3, 8))
    weight = parameter("w", np.ones((3, 4)))
    update = Update(
        [TrainableParameter(weight, ParameterGroup.WEIGHTS, cell)], [],
        momentum=0.9, weight_decay=0.0, clipped=False, kl_clip=1e-3,
    )  # fmt: skip
    update(scalar(0.0), scalar(0.0), scalar(1.0), Tensor(np.ones((3, 4), np.float32)))
    update(scalar(0.1), scalar(0.0), scalar(1.0), Tensor(np.zeros((3, 4), np.float32)))
    assert np.isfinite(weight.asnumpy()).all()


def test_adamw_follows_the_paper() -> None:
    """Algorithm 2 of arXiv 1711.05101 in float64; vectors and GeM's p are not decayed."""
    rng = np.random.default_rng(5)
    shapes = {"matrix": (3, 4), "vector": (4,), "p": (1,)}
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    values["p"][:] = 1.02  # reaches its lower bound of 1
    groups = {"p": ParameterGroup.GEM_P}
    parameters = {name: Parameter(Tensor(v), name=f"adamw_{name}") for name, v in values.items()}
    update = Update(
        [
            TrainableParameter(p, groups.get(name, ParameterGroup.WEIGHTS))
            for name, p in parameters.items()
        ],
        [], momentum=0.9, weight_decay=0.1, clipped=False, adamw=(0.99, 1e-6),
    )  # fmt: skip
    expected = {name: v.astype(np.float64) for name, v in values.items()}
    m = {name: np.zeros(shape) for name, shape in shapes.items()}
    v = {name: np.zeros(shape) for name, shape in shapes.items()}
    for t in range(1, 6):
        rate = 0.05 / t
        gradients = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
        update(
            Tensor(rate, mindspore.float32),
            Tensor(0.0, mindspore.float32),
            Tensor(1.0, mindspore.float32),
            *(Tensor(g) for g in gradients.values()),
        )
        for name, g in gradients.items():
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.99 * v[name] + 0.01 * g.astype(np.float64) ** 2
            step = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.99**t)) + 1e-6)
            decay = 0.1 if name == "matrix" else 0.0
            expected[name] = expected[name] * (1 - rate * decay) - rate * step
        expected["p"] = np.maximum(expected["p"], 1.0)
    for name, parameter in parameters.items():
        np.testing.assert_allclose(parameter.asnumpy(), expected[name], rtol=2e-6, atol=2e-6)
