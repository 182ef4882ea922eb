"""THOR's curvature factors and those of curvlinops' K-FAC, for ``benchmarks.thor_factors``.

A small network in MindSpore and in PyTorch with the same weights, batch and labels. Every diagonal
block of A and G of every layer is compared with the same block of curvlinops' full factors for the
empirical Fisher matrix. curvlinops keeps the number of positions T in G: its factors are A and T G.
Here they are sqrt(T) A and sqrt(T) G.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import curvlinops
import mindspore
import numpy as np
import torch
from mindspore import Tensor, nn, ops

from multigrain.model.layers import Conv2d, Dense, Pair
from multigrain.optim.thor.capture import attach_taps

IMAGES, SIDE, CLASSES, BLOCK = 16, 13, 5, 16


@dataclass(frozen=True)
class Shape:
    """One convolution of the network."""

    inputs: int
    outputs: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)


SHAPES = (
    Shape(3, 10, (7, 7), stride=(2, 2), padding=(3, 3)),
    Shape(10, 12, (3, 3), padding=(1, 1)),
    Shape(12, 18, (3, 3), stride=(2, 2), padding=(2, 2), dilation=(2, 2)),
    Shape(18, 9, (1, 3), padding=(0, 1)),
    Shape(9, 20, (1, 1)),
)


class MindSporeNet(nn.Cell):
    """Convolutions with ReLU, mean over positions, two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.CellList(
            [
                Conv2d(
                    s.inputs, s.outputs, s.kernel,
                    stride=s.stride, padding=s.padding, dilation=s.dilation,
                )
                for s in SHAPES
            ]
        )  # fmt: skip
        self.hidden = Dense(SHAPES[-1].outputs, 33)
        self.classifier = Dense(33, CLASSES)

    def construct(self, x: Tensor) -> Tensor:
        for layer in self.features:
            x = ops.relu(layer(x))
        return self.classifier(ops.relu(self.hidden(x.mean((2, 3)))))


class TorchNet(torch.nn.Module):
    """The same network in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.ModuleList(
            [
                torch.nn.Conv2d(
                    s.inputs, s.outputs, s.kernel,
                    stride=s.stride, padding=s.padding, dilation=s.dilation, bias=False,
                )
                for s in SHAPES
            ]
        )  # fmt: skip
        self.hidden = torch.nn.Linear(SHAPES[-1].outputs, 33)
        self.classifier = torch.nn.Linear(33, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.features:
            x = torch.relu(layer(x))
        return self.classifier(torch.relu(self.hidden(x.mean((2, 3)))))


def positions() -> dict[str, int]:
    """Number of positions T of each layer."""
    found, height, width = {}, SIDE, SIDE
    for index, s in enumerate(SHAPES):
        height, width = (
            (n + 2 * p - d * (k - 1) - 1) // t + 1
            for n, p, d, k, t in zip(
                (height, width), s.padding, s.dilation, s.kernel, s.stride, strict=True
            )
        )
        found[f"features.{index}"] = height * width
    return found | {"hidden": 1, "classifier": 1}


@dataclass(frozen=True)
class Errors:
    """Largest relative errors in Frobenius norm of a layer's blocks, and its sizes."""

    layer: str
    positions: int
    dim_a: int
    dim_g: int
    blocks: int
    a: float
    g: float


def factor_errors() -> Iterator[Errors]:
    """Compares all layers."""
    mindspore.set_device("CPU")
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((IMAGES, 3, SIDE, SIDE)).astype(np.float32)
    labels = rng.integers(0, CLASSES, IMAGES).astype(np.int32)
    ours, theirs = MindSporeNet(), TorchNet()
    weights = dict(theirs.named_parameters())
    for p in ours.get_parameters():
        values = (0.3 * rng.standard_normal(p.shape)).astype(np.float32)
        p.set_data(Tensor(values))
        weights[p.name].data = torch.from_numpy(values)

    layers = attach_taps(ours, block_size=BLOCK)
    slots = mindspore.ParameterTuple([p for x in layers for p in x.slots])

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        return ops.cross_entropy(ours(images), targets)

    value, found = mindspore.value_and_grad(loss, None, slots)(Tensor(x), Tensor(labels))
    batch = (torch.from_numpy(x), torch.from_numpy(labels.astype(np.int64)))
    criterion = torch.nn.CrossEntropyLoss()
    expected = criterion(theirs(batch[0]), batch[1]).detach()
    if abs(float(value.asnumpy()) - float(expected)) > 1e-4:
        raise ValueError(f"the networks differ: losses {value} and {expected}")

    kfac = curvlinops.KFACLinearOperator(
        theirs, criterion, list(theirs.parameters()), [batch],
        fisher_type="empirical", kfac_approx="expand", separate_weight_and_bias=True,
        check_deterministic=False,  # it computes the factors, and the call below adds to them
    )  # fmt: skip
    kfac.compute_kronecker_factors()

    counts = positions()
    for index, layer in enumerate(layers):
        root = math.sqrt(counts[layer.name])
        errors = []
        for blocks, layout, full in (
            (found[2 * index].asnumpy() / root, layer.a, kfac._input_covariances[layer.name]),
            (
                found[2 * index + 1].asnumpy() * root,
                layer.g,
                kfac._gradient_covariances[layer.name],
            ),
        ):
            reference = full.numpy().astype(np.float64)
            if reference.shape != (layout.dim, layout.dim):
                raise ValueError(
                    f"{layer.name}: {reference.shape}, expected {layout.dim} x {layout.dim}"
                )
            differences = []
            for block in range(layout.count):
                valid = layout.valid(block)
                part = slice(block * layout.size, block * layout.size + valid)
                right = reference[part, part]
                error = np.linalg.norm(blocks[block, :valid, :valid] - right)
                differences.append(error / np.linalg.norm(right))
            errors.append(float(max(differences)))
        count = layer.a.count + layer.g.count
        yield Errors(layer.name, counts[layer.name], layer.a.dim, layer.g.dim, count, *errors)
