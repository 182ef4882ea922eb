"""Saving and loading a model's weights."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.model.multigrain import build_model
from multigrain.model.state import load_model_state, model_state
from multigrain.optim.thor.capture import attach_taps
from multigrain.specs.training import ModelSpec

pytestmark = pytest.mark.mindspore

SPEC = ModelSpec(trunk="resnet18")


def test_a_loaded_model_computes_the_same() -> None:
    first, second = build_model(SPEC, 5, seed=1), build_model(SPEC, 5, seed=2)
    first.trunk.bn1.moving_mean.set_data(Tensor(np.full(64, 0.1, np.float32)))
    load_model_state(second, model_state(first))
    x = Tensor(np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32))
    for net in (first, second):
        net.set_train(False)
    for a, b in zip(first(x), second(x), strict=True):
        np.testing.assert_array_equal(a.asnumpy(), b.asnumpy())


def test_state_has_statistics_and_exponent_and_no_curvature() -> None:
    net = build_model(ModelSpec(trunk="resnet18", gem_p=2.5), 5)
    names = set(model_state(net))
    attach_taps(net, block_size=128)
    state = model_state(net)
    assert set(state) == names
    assert {"trunk.conv1.weight", "trunk.bn1.moving_variance", "classifier.bias"} <= names
    assert state["pool.p"] == np.float32(2.5)


@pytest.mark.parametrize("learn", [False, True])
def test_the_exponent_is_restored(learn: bool) -> None:
    state = model_state(build_model(ModelSpec(trunk="resnet18", gem_p=4.0), 5))
    net = build_model(ModelSpec(trunk="resnet18", learn_gem_p=learn), 5)
    load_model_state(net, state)
    assert net.pool.value == 4.0


def test_mismatches_are_reported_and_nothing_is_changed() -> None:
    net = build_model(SPEC, 5)
    before = net.trunk.conv1.weight.asnumpy()
    state = model_state(build_model(SPEC, 6, seed=9))
    del state["trunk.bn1.gamma"]
    state["other"] = np.zeros(1, np.float32)
    with pytest.raises(MultigrainError) as caught:
        load_model_state(net, state)
    assert caught.value.kind is ErrorKind.CHECKPOINT
    for text in ("missing: trunk.bn1.gamma", "unexpected: other", "classifier.weight is (6, 512)"):
        assert text in caught.value.message
    np.testing.assert_array_equal(net.trunk.conv1.weight.asnumpy(), before)
