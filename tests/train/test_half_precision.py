"""Half precision, simulated on the CPU."""

from __future__ import annotations

from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from multigrain.errors import MultigrainError
from multigrain.model.layers import Conv2d
from multigrain.model.multigrain import build_model
from multigrain.specs.training import ModelSpec
from multigrain.train.step import TrainStep
from tests.train.tiny import batch, tiny_spec, tiny_step, weights

pytestmark = pytest.mark.mindspore


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that checks the device would refuse, or use a method for the CPU only."""
    real = mindspore.get_context
    monkeypatch.setattr(
        mindspore, "get_context", lambda key: "GPU" if key == "device_target" else real(key)
    )


def half_step(**options: Any) -> TrainStep:
    spec = tiny_spec(**options)
    return tiny_step(spec.model_copy(update={"precision": "fp16"}))


def test_half_precision_is_refused_on_the_cpu() -> None:
    with pytest.raises(MultigrainError, match="use fp32") as caught:
        half_step()
    assert caught.value.violations[0].field == "spec.precision"


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("trunk", "stem"), [("resnet18", "small"), ("se_resnet50", "imagenet")], ids=str
)
def test_convolutions_are_half_precision_and_results_float32(trunk: str, stem: str) -> None:
    net = build_model(ModelSpec(trunk=trunk, stem=stem, zero_init_residual=False), 5)
    net.set_train(False)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32))
    expected = [t.asnumpy() for t in net(x)]
    net.set_precision("fp16")
    convolutions = [c for _, c in net.cells_and_names() if isinstance(c, Conv2d)]
    assert convolutions
    assert all(c.half for c in convolutions)
    assert net.trunk(x).dtype == mindspore.float16
    for found, one in zip(net(x), expected, strict=True):
        assert found.dtype == mindspore.float32
        error = np.abs(found.asnumpy() - one).max() / np.abs(one).max()
        assert 0 < error < 0.02
    net.set_precision("fp32")
    for found, one in zip(net(x), expected, strict=True):
        np.testing.assert_array_equal(found.asnumpy(), one)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_thor_steps_in_half_precision_are_close_to_float32() -> None:
    plain, half = tiny_step(tiny_spec()), half_step(loss_scale=0.0)
    for i in range(4):
        one, other = plain(*batch(i)), half(*batch(i))
        assert (other.skipped, other.loss_scale) == (False, 1024)
        assert other.loss == pytest.approx(one.loss, rel=2e-3)
        assert other.refreshed_layers == one.refreshed_layers
    found, expected = weights(half) | half.state(), weights(plain) | plain.state()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        bound = 0.01 * np.abs(values).max()
        np.testing.assert_allclose(found[name], values, rtol=0, atol=bound, err_msg=name)
    assert any((found[name] != values).any() for name, values in expected.items())


@pytest.mark.usefixtures("as_on_a_gpu")
def test_overflowing_derivatives_reduce_the_loss_scale() -> None:
    step = half_step(kind="momentum", loss_scale=2.0**21, max_skipped_steps=1)
    results = [step(*batch(0))]
    while results[-1].skipped:
        assert "gradient" in results[-1].skipped_because
        results.append(step(*batch(0)))
    assert 1 < len(results) < 8
    assert [r.loss_scale for r in results] == [2.0 ** (21 - k) for k in range(len(results))]
