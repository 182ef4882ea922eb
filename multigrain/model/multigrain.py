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

# Output positions up to which a matrix product beats the CPU's convolution kernels (measured).
SMALL_MAP = 9


class MultiGrain(nn.Cell):
    """(N, 3, H, W) float32 -> embedding (N, C) and logits (N, K), both float32.

    The embedding is *not* normalized: the classifier takes it as it is; the instance loss and
    retrieval normalize it themselves (arXiv 1902.05509, section 3).

    Args:
        trunk: the feature extractor.
        pool: GeM pooling.
        classes: K, outputs of the classifier.
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
        """Sets the precision of the trunk's convolutions; "fp16" needs a GPU or Ascend device.

        BatchNorm keeps float32 statistics; GeM, the classifier and the losses are float32.
        Call it before the first step.

        Raises:
            MultigrainError: INVALID_FIELD, for "fp16" on the CPU.
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
        """Convolves small feature maps as matrix products, for training on the CPU.

        The result is the same up to rounding, and computed several times faster for maps of up to
        3x3. Not for a model that is exported. Call it before the first step.
        """
        for _, cell in self.trunk.cells_and_names():
            if isinstance(cell, Conv2d) and cell.kernel != (1, 1):
                cell.matmul_positions = SMALL_MAP


def build_model(spec: ModelSpec, classes: int, *, seed: int = 0) -> MultiGrain:
    """Builds and initializes the network.

    Args:
        spec: trunk, stem, pooling.
        classes: outputs of the classifier, >= 1.
        seed: of the initial weights.

    Raises:
        MultigrainError: INVALID_FIELD, for an unknown trunk or stem or an invalid p.
    """
    if classes < 1:
        raise MultigrainError.field("spec.model.classes", f"must be at least 1, is {classes}")
    net = MultiGrain(
        build_trunk(spec.trunk, spec.stem), GeM(spec.gem_p, learn=spec.learn_gem_p), classes
    )
    initialize(net, seed, zero_init_residual=spec.zero_init_residual)
    return net


class GemOverride(nn.Cell):
    """``network`` with another GeM exponent, sharing its weights.

    (N, 3, H, W) float32 -> embedding (N, C) and logits (N, K). Several overrides of one network
    share one copy of the weights; each has its own compiled graph.

    Args:
        network: trunk and classifier.
        p: exponent, >= 1 or infinity; a constant.
    """

    def __init__(self, network: MultiGrain, p: float) -> None:
        # Without a prefix the shared parameters keep their names.
        super().__init__(auto_prefix=False)
        self.network = network
        self.pool = GeM(p)

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.pool(self.network.trunk(images))
        return embedding, self.network.classifier(embedding)
