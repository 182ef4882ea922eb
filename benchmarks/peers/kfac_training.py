"""Training with THOR in blocks and with curvlinops' whole factors, for ``benchmarks.unsplit_kfac``.

A small trunk, the first three stages of a ResNet-18, on distorted scans of digits at 32 px: once
with ``TrainStep`` and THOR in blocks of 128, once in PyTorch with the full factors of curvlinops,
up to 2304 x 2304. Both get the same initial weights, batches, learning rate, momentum, weight
decay, damping and refresh frequency.

Both damp the two sides of a layer in the same way: sqrt(T) A and sqrt(T) G by sqrt(lambda), where T
is the number of positions. curvlinops' factors are A and T G. Both use the empirical Fisher matrix
of the batch. THOR builds a factor from at most 8192 rows, in the first layer from a third of the
positions; curvlinops uses all positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import curvlinops
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from multigrain.losses.objective import JointObjective
from multigrain.model.gem import GeM
from multigrain.model.layouts import Layout
from multigrain.model.multigrain import MultiGrain
from multigrain.model.parameters import initialize
from multigrain.model.resnet import ResNet
from multigrain.model.state import model_state
from multigrain.optim import schedules
from multigrain.specs.training import TrainingSpec
from multigrain.train.step import TrainStep
from multigrain.weights.names import TORCHVISION
from tests.peers.networks import TorchResNet

STEPS, LAST, BATCH, SIDE, CLASSES = 200, 20, 96, 32, 10
STEPS_PER_EPOCH = 1797 // BATCH
STAGES = Layout((2, 2, 2, 0), bottleneck=False)
CHANNELS, GEM_P = 256, 3.0
# Optimizer and schedule of the preset `digits-demo`, with a lower learning rate for one worker's
# batch and the classification loss only.
SPEC = TrainingSpec.model_validate(
    {
        "objective": {"instance_loss": "none"},
        "optimizer": {
            "kind": "thor",
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "thor": {"frequency": 20, "block_size": 128, "damping_init": 0.1},
        },
        "schedule": {
            "epochs": math.ceil(STEPS / STEPS_PER_EPOCH),
            "batch_size": BATCH,
            "learning_rate": {"kind": "thor", "init": 0.02, "decay": 1.5},
        },
    }
)


@dataclass(frozen=True)
class Batch:
    """images (B, 3, S, S) float32; labels (B,) int32."""

    images: NDArray[np.float32]
    labels: NDArray[np.int32]


def batches(seed: int) -> Iterator[Batch]:
    """One batch per step: shuffled every epoch, each scan rotated, shifted and scaled."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(STEPS):
        if len(order) < BATCH:
            order = list(rng.permutation(len(digits.images)))
        chosen, order = order[:BATCH], order[BATCH:]
        scans = np.stack([distorted(digits.images[index], rng) for index in chosen])
        images = np.repeat(scans[:, None], 3, axis=1)
        yield Batch(images, digits.target[chosen].astype(np.int32))


def distorted(scan: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """(8, 8) in 0..16 -> (S, S) with mean of about 0 and standard deviation of about 1."""
    image = Image.fromarray((scan * (255 / 16)).astype(np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    zoom, moved = rng.uniform(0.9, 1.2), rng.uniform(-3, 3, 2)
    margin = SIDE * (1 - 1 / zoom) / 2
    box = (1 / zoom, 0, margin + moved[0], 0, 1 / zoom, margin + moved[1])
    image = image.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR)
    image = image.transform((SIDE, SIDE), Image.Transform.AFFINE, box, Image.Resampling.BILINEAR)
    return ((np.asarray(image, np.float32) / 255 - 0.3) / 0.35).astype(np.float32)


def small_model(seed: int) -> MultiGrain:
    """The model with its initial weights."""
    model = MultiGrain(ResNet(STAGES), GeM(GEM_P, learn=False), CLASSES)
    initialize(model, seed, zero_init_residual=True)
    return model


class Classifier(TorchResNet):
    """The same network in PyTorch; returns logits only, as curvlinops expects."""

    def __init__(self) -> None:
        super().__init__("resnet18", CLASSES, p=GEM_P)
        self.layer4 = nn.Sequential()
        self.fc = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[1]


class UnsplitKfac:
    """Training in PyTorch, preconditioned with the full factors of curvlinops."""

    def __init__(self, model: MultiGrain) -> None:
        ours = model_state(model)
        self.net = Classifier().train()
        for name, value in self.net.state_dict().items():
            line = TORCHVISION.to_native(name)
            if line is not None:
                value.copy_(torch.from_numpy(ours[line[0]]))
        self.criterion = nn.CrossEntropyLoss()
        self.layers = {
            name: module
            for name, module in self.net.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))
        }
        self.positions: dict[str, int] = {}
        for name, module in self.layers.items():
            module.register_forward_hook(self._count(name))
        self.moments = {n: torch.zeros_like(p) for n, p in self.net.named_parameters()}
        self.inverses: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, batch: Batch, step: int) -> float:
        """Takes one step and returns its loss."""
        images = torch.from_numpy(batch.images)
        labels = torch.from_numpy(batch.labels.astype(np.int64))
        optimizer = SPEC.optimizer
        rate = schedules.learning_rate(SPEC.schedule, step, STEPS_PER_EPOCH)
        if step % optimizer.thor.frequency == 0:
            damping = schedules.damping(optimizer.thor, step, STEPS_PER_EPOCH)
            self._refresh(images, labels, damping)
        self.net.zero_grad()
        loss = self.criterion(self.net(images), labels)
        loss.backward()
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                assert parameter.grad is not None
                gradient = parameter.grad
                layer = name.removesuffix(".weight")
                if layer in self.inverses and name.endswith(".weight"):
                    a, g = self.inverses[layer]
                    gradient = (g @ gradient.flatten(1) @ a).reshape(gradient.shape)
                gradient = gradient + optimizer.weight_decay * parameter
                self.moments[name].mul_(optimizer.momentum).add_(gradient)
                parameter.sub_(rate * self.moments[name])
        return float(loss.detach())

    def _refresh(self, images: torch.Tensor, labels: torch.Tensor, damping: float) -> None:
        kfac = curvlinops.KFACLinearOperator(
            self.net, self.criterion, [x.weight for x in self.layers.values()], [(images, labels)],
            fisher_type="empirical", kfac_approx="expand", separate_weight_and_bias=True,
            check_deterministic=False,  # computes factors, to which the call below would add
        )  # fmt: skip
        kfac.compute_kronecker_factors()
        for name in self.layers:
            root = math.sqrt(self.positions[name])
            self.inverses[name] = (
                inverse(kfac._input_covariances[name] * root, math.sqrt(damping)),
                inverse(kfac._gradient_covariances[name] / root, math.sqrt(damping)),
            )

    def _count(self, name: str):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            self.positions[name] = output[0, 0].numel()

        return hook


def inverse(factor: torch.Tensor, damping: float) -> torch.Tensor:
    """(factor + damping I)^-1 of the full factor."""
    damped = (factor + factor.T) / 2
    damped.diagonal().add_(damping)
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))


@dataclass(frozen=True)
class Curves:
    """Losses (STEPS,) of both, before the update of each step."""

    thor: NDArray[np.float64]
    kfac: NDArray[np.float64]

    @property
    def final(self) -> tuple[float, float]:
        """Mean losses of the last steps, which reduces the noise of single batches."""
        return float(self.thor[-LAST:].mean()), float(self.kfac[-LAST:].mean())


def train(seed: int) -> Curves:
    """Trains with both on the same batches."""
    model = small_model(seed)
    kfac = UnsplitKfac(model)
    thor = TrainStep(
        model, JointObjective(SPEC.objective), SPEC, world=1, steps_per_epoch=STEPS_PER_EPOCH
    )
    instances = np.arange(BATCH, dtype=np.int32)
    losses = []
    for step, batch in enumerate(batches(seed)):
        one = thor(batch.images, batch.labels, instances).loss
        two = kfac(batch, step)
        losses.append((one, two))
        if step % 20 == 0:
            print(f"seed {seed}, step {step + 1}: THOR {one:.5f}, K-FAC {two:.5f}", flush=True)
    if abs(losses[0][0] - losses[0][1]) > 1e-4:
        raise ValueError(f"the networks differ before the first step: {losses[0]}")
    return Curves(*np.array(losses, np.float64).T)
