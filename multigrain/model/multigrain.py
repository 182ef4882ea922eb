"""The MultiGrain network: trunk, GeM pooling, linear classifier."""

from __future__ import annotations

from typing import Literal

import mindspore
from mindspore import Tensor, nn

from multigrain.errors import MultigrainError
from multigrain.model.gem import GeM
from multigrain.model.layers import Conv2d, Dense
from multigrain.model.parameters import initialize
from multigrain.model.resnet import ResNet, build_trunk
from multigrain.specs.training import ModelSpec

# Positions up to which a matrix product beats the CPU's convolution kernels (measured).
SMALL_MAP = 9


class MultiGrain(nn.Cell):
    """(N, 3, H, W) float32 -> embedding (N, C) and logits (N, K), both float32.

    The embedding is *not* normalized: the classifier sees it as it is, the instance loss and
    retrieval normalize it themselves (arXiv 1902.05509, section 3).
    """

    def __init__(self, trunk: ResNet, pool: GeM, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.pool = pool
        self.classifier = Dense(trunk.out_channels, classes)
        self.embedding_size = trunk.out_channels
        self.classes = classes

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.pool(self.trunk(images))
        return embedding, self.classifier(embedding)

    def set_precision(self, precision: Literal["fp32", "fp16"]) -> None:
        """Computes the trunk's convolutions in half precision (GPU and Ascend).

        BatchNorm keeps float32 statistics; GeM, the classifier and the losses are float32.
        Call it before the first step.
        """
        half = precision == "fp16"
        if half and mindspore.get_context("device_target") == "CPU":
            raise MultigrainError.field(
                "spec.precision", "fp16 needs a GPU or an Ascend device; use fp32 on the CPU"
            )
        for _, cell in self.trunk.cells_and_names():
            if isinstance(cell, Conv2d):
                cell.half = half

    def speed_up_small_maps(self) -> None:
        """For training on the CPU: small feature maps are convolved as matrix products.

        The same function, up to rounding; several times faster for maps of up to 3x3. Not for
        a model that is exported. Call it before the first step.
        """
        for _, cell in self.trunk.cells_and_names():
            if isinstance(cell, Conv2d) and cell.kernel != (1, 1):
                cell.matmul_positions = SMALL_MAP


def build_model(spec: ModelSpec, classes: int, *, seed: int = 0) -> MultiGrain:
    """Builds the network and fills it with the start weights of ``seed``.

    Args:
        spec: trunk, stem, pooling.
        classes: outputs of the classifier, >= 1.
    Raises:
        MultigrainError: INVALID_FIELD, for an unknown trunk or stem or an impossible p.
    """
    if classes < 1:
        raise MultigrainError.field("spec.model.classes", f"must be at least 1, is {classes}")
    net = MultiGrain(
        build_trunk(spec.trunk, spec.stem), GeM(spec.gem_p, learn=spec.learn_gem_p), classes
    )
    initialize(net, seed, zero_init_residual=spec.zero_init_residual)
    return net


# MERGED: A network that pools with another exponent than its own, and shares its weights.


class GemOverride(nn.Cell):
    """(N, 3, H, W) float32 -> embedding (N, C) and logits (N, K), as ``network`` with p = ``p``.

    Several of them hold one copy of the weights; each is compiled by itself.

    Args:
        network: trunk and classifier.
        p: exponent, >= 1 or infinity; a constant.
    """

    def __init__(self, network: MultiGrain, p: float) -> None:
        # No prefix: the parameters keep their names, whoever else holds the network.
        super().__init__(auto_prefix=False)
        self.network = network
        self.pool = GeM(p)

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.pool(self.network.trunk(images))
        return embedding, self.network.classifier(embedding)
