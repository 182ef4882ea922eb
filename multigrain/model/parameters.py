"""Parameter values: assignment in place, and random initialization."""

from __future__ import annotations

import math
import zlib

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from multigrain.model.layers import Conv2d, Dense
from multigrain.model.resnet import BasicBlock, Bottleneck


def assign(parameter: Parameter, values: np.ndarray) -> None:
    """Copies ``values`` as float32 into the parameter's existing memory.

    ``Parameter.set_data`` allocates new memory instead, and graphs that are already compiled
    (MindSpore 2.8.0) silently keep reading and writing the old one.
    """
    ops.assign(parameter, Tensor(np.array(values, np.float32, order="C")))


CLASSIFIER_STD = 0.01


def initialize(net: nn.Cell, seed: int, *, zero_init_residual: bool) -> None:
    """Initializes every weight of ``net`` in place, the same on every rank and machine.

    Convolutions: He normal over the fan-out (like torchvision's ResNets); hidden dense layers: He
    normal over the fan-in; the classifier: normal with standard deviation 0.01, so that training
    starts at the loss of a uniform guess; biases 0; BatchNorm 1 and 0. Each weight has its own
    random stream, keyed by the seed and its name, so adding a layer does not change the others.

    Args:
        net: the network, with weights of 0.
        seed: of the random streams.
        zero_init_residual: initialize the last BatchNorm scale of each residual block with 0.
    """
    for name, cell in net.cells_and_names():
        if isinstance(cell, Conv2d):
            fan_out = cell.out_channels * cell.kernel[0] * cell.kernel[1] // cell.groups
            _normal(cell.weight, seed, f"{name}.weight", math.sqrt(2.0 / fan_out))
        elif isinstance(cell, Dense):
            std = CLASSIFIER_STD if name == "classifier" else math.sqrt(2.0 / cell.in_channels)
            _normal(cell.weight, seed, f"{name}.weight", std)
        elif zero_init_residual and isinstance(cell, (BasicBlock, Bottleneck)):
            gamma = cell.last_norm().gamma
            gamma.set_data(Tensor(np.zeros(gamma.shape, np.float32)))


def _normal(parameter, seed: int, name: str, std: float) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = rng.standard_normal(parameter.shape, dtype=np.float32) * np.float32(std)
    parameter.set_data(Tensor(values))
