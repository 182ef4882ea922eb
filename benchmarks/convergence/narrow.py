"""A small network of the library's layers, for runs of many steps on one core."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from multigrain.model.gem import GeM
from multigrain.model.layers import Conv2d
from multigrain.model.multigrain import MultiGrain
from multigrain.model.parameters import initialize
from multigrain.model.resnet import BasicBlock, batch_norm
from multigrain.specs.training import ModelSpec

WIDTHS = (16, 32, 64, 128)
BLOCKS = 1


class NarrowTrunk(nn.Cell):
    """ResNet-18 at a quarter of its width after one 3x3 convolution of stride 2.

    For inputs of 32 px the last feature map has 2x2 positions for GeM to pool; with the ImageNet
    stem it would have one. (N, 3, H, W) -> (N, 128, H / 16, W / 16).
    """

    def __init__(self) -> None:
        super().__init__()
        channels = WIDTHS[0]
        self.conv1 = Conv2d(3, channels, 3, stride=2, padding=1)
        self.bn1 = batch_norm(channels)
        blocks = []
        for width in WIDTHS:
            for _ in range(BLOCKS):
                stride = 2 if width != channels else 1
                blocks.append(BasicBlock(channels, width, stride, squeeze=False))
                channels = width
        self.blocks = nn.SequentialCell(blocks)
        self.out_channels = channels

    def construct(self, x: Tensor) -> Tensor:
        return self.blocks(ops.relu(self.bn1(self.conv1(x))))


def narrow_model(spec: ModelSpec, classes: int, *, seed: int) -> MultiGrain:
    """Like ``build_model``, but always with the narrow trunk."""
    model = MultiGrain(NarrowTrunk(), GeM(spec.gem_p), classes)
    initialize(model, seed, zero_init_residual=spec.zero_init_residual)
    return model
