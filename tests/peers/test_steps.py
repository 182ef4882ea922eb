"""Training steps against PyTorch: gradients, BatchNorm statistics, SGD with momentum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mindspore import Tensor
from numpy.typing import NDArray
from torch.nn import functional

from multigrain.losses.objective import JointObjective
from multigrain.model.multigrain import build_model
from multigrain.model.resnet import batch_norm
from multigrain.model.state import load_model_state, model_state
from multigrain.specs.training import TrainingSpec
from multigrain.train.step import TrainStep
from multigrain.weights.names import TORCHVISION
from multigrain.weights.translate import translate
from tests.peers.figures import record
from tests.peers.names import pytorch_shapes
from tests.peers.networks import TorchResNet
from tests.peers.seeded import images, seeded_state

pytestmark = pytest.mark.mindspore

CLASSES = 5
STEPS = 4


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("batch", [2, 8])
def test_running_statistics_after_a_few_batches(batch: int) -> None:
    rng = np.random.default_rng(0)
    ours = batch_norm(4)
    ours.set_train(True)
    theirs = torch.nn.BatchNorm2d(4)
    for step in range(4):
        x = (rng.standard_normal((batch, 4, 2, 2)) * (1 + step) + step).astype(np.float32)
        found = ours(Tensor(x)).asnumpy()
        expected = theirs(torch.from_numpy(x)).detach().numpy()
        assert relative(found, expected) <= 1e-5
    assert theirs.running_mean is not None
    assert theirs.running_var is not None
    errors = [
        relative(ours.moving_mean.asnumpy(), theirs.running_mean.numpy()),
        relative(ours.moving_variance.asnumpy(), theirs.running_var.numpy()),
    ]
    record(f"BatchNorm of {batch * 4} values a channel, 4 steps: mean, variance", *errors)
    assert max(errors) <= 1e-5


def test_steps_of_sgd_with_momentum_and_weight_decay() -> None:
    """The distance to PyTorch in float64 is at most that of PyTorch in float32.

    The absolute distance is not meaningful: rounding moves some activations across a ReLU's 0,
    and every step amplifies it.
    """
    spec = TrainingSpec.model_validate(
        {
            "model": {"trunk": "resnet18", "gem_p": 3.0},
            "objective": {"instance_loss": "none", "label_smoothing": 0.1},
            "optimizer": {"kind": "momentum", "momentum": 0.9, "weight_decay": 0.01},
            "schedule": {"learning_rate": {"kind": "step", "init": 0.002}},
        }
    )
    state = seeded_state(pytorch_shapes("resnet18", CLASSES))
    net = build_model(spec.model, CLASSES)
    load_model_state(net, translate(state, "w").model | {"pool.p": np.float32(3.0)})
    net.set_train(True)
    step = TrainStep(net, JointObjective(spec.objective), spec, world=1, steps_per_epoch=10)
    exact, single = TorchTraining(state, torch.float64), TorchTraining(state, torch.float32)
    rng = np.random.default_rng(3)
    errors, yardsticks = [], []
    for number in range(STEPS):
        x = images(6, 64, seed=number)
        labels = rng.integers(0, CLASSES, 6)
        result = step(x, labels.astype(np.int32), np.arange(6, dtype=np.int32))
        expected = exact.step(x, labels, result.learning_rate)
        rounded = single.step(x, labels, result.learning_rate)
        errors.append(abs(result.loss - expected) / expected)
        yardsticks.append(abs(rounded - expected) / expected)
    record(f"{STEPS} steps of a ResNet-18, SGD: loss of each", *errors)
    record("  the same of PyTorch in float32", *yardsticks)
    assert errors[0] <= 1e-5
    assert max(errors) <= 1e-4

    ours = {name: array.astype(np.float64) for name, array in model_state(net).items()}
    found = {name: ours[line[0]] for name in state if (line := TORCHVISION.to_native(name))}
    mine, yardstick = exact.distance(found), exact.distance(single.state())
    record("  weights and statistics after them, over the way they moved", mine)
    record("  the same of PyTorch in float32", yardstick)
    assert mine <= 2 * yardstick


class TorchTraining:
    """The same training run in PyTorch with the given precision."""

    def __init__(self, state: dict[str, NDArray[np.float32]], dtype: torch.dtype) -> None:
        self.start = state
        self.dtype = dtype
        self.net = TorchResNet("resnet18", CLASSES, p=3.0).train()
        self.net.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
        self.net.to(dtype)
        self.sgd = torch.optim.SGD(self.net.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)

    def step(self, x: NDArray[np.float32], labels: NDArray[np.int64], rate: float) -> float:
        self.sgd.param_groups[0]["lr"] = rate
        self.sgd.zero_grad()
        logits = self.net(torch.from_numpy(x).to(self.dtype))[1]
        loss = functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=0.1)
        loss.backward()
        self.sgd.step()
        return loss.item()

    def state(self) -> dict[str, NDArray[np.float64]]:
        return {name: value.double().numpy() for name, value in self.net.state_dict().items()}

    def distance(self, other: dict[str, NDArray[np.float64]]) -> float:
        """The largest distance of a parameter, relative to its change by training."""
        worst = 0.0
        for name, expected in self.state().items():
            if not name.endswith("num_batches_tracked"):
                way = np.linalg.norm(expected - self.start[name])
                assert way > 0, name
                worst = max(worst, float(np.linalg.norm(other[name] - expected) / way))
        return worst
