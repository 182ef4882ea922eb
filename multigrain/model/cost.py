"""The work and the memory of a training step, counted from the architecture.

Does not import MindSpore.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from multigrain.model.layouts import LAYOUTS, trunk_shapes

#: A step computes the outputs, the gradients of the inputs and those of the weights.
PASSES: Final = 3
# Arrays of the size of a convolution's output that a step has at the same time, and what Python,
# MindSpore and the compiled graph take. Fitted to measured peaks, see tests/model/test_cost.py.
_KEPT: Final = 3.2
_BASE_BYTES: Final = 1050 << 20
# Weights, gradients and momentum.
_COPIES: Final = 3


@dataclass(frozen=True)
class Cost:
    """The cost of one image.

    Args:
        macs: multiplications of a forward pass.
        activations: numbers in the outputs of all convolutions.
        parameters: of the trunk.
    """

    macs: int
    activations: int
    parameters: int

    def step_bytes(self, batch: int) -> int:
        """Estimated memory of a training step in float32."""
        numbers = _KEPT * batch * self.activations + _COPIES * self.parameters
        return _BASE_BYTES + round(4 * numbers)


def trunk_cost(trunk: str, size: int, stem: str = "imagenet") -> Cost:
    """Counts the convolutions of a trunk for a square image.

    Args:
        trunk: a key of ``LAYOUTS``.
        size: side of the image in pixels.
        stem: a key of ``STEM_KERNELS``.
    """
    shapes = trunk_shapes(trunk, stem)
    sides = {"trunk.conv1": math.ceil(size / 2) if stem == "imagenet" else size}
    side = math.ceil(sides["trunk.conv1"] / 2) if stem == "imagenet" else size
    layout = LAYOUTS[trunk]
    for stage, count in enumerate(layout.blocks, 1):
        for block in range(count):
            before, stride = side, 2 if stage > 1 and block == 0 else 1
            side = math.ceil(side / stride)
            prefix = f"trunk.layer{stage}.{block}"
            # The stride of a bottleneck is in its 3 x 3 convolution.
            sides[f"{prefix}.conv1"] = before if layout.bottleneck else side
            sides[f"{prefix}.conv2"] = sides[f"{prefix}.conv3"] = side
            sides[f"{prefix}.downsample.0"] = side
    macs = activations = 0
    for name, output in sides.items():
        shape = shapes.get(f"{name}.weight")
        if shape is not None:
            macs += math.prod(shape) * output**2
            activations += shape[0] * output**2
    return Cost(macs, activations, sum(math.prod(shape) for shape in shapes.values()))
