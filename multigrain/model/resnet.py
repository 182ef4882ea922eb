"""ResNet v1.5 trunks (stride in the 3x3), with or without squeeze-and-excitation."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from multigrain.errors import MultigrainError
from multigrain.model.layers import Conv2d, Dense
from multigrain.model.layouts import LAYOUTS, SE_REDUCTION, STEM_KERNELS, Layout


def batch_norm(channels: int) -> nn.Cell:
    """BatchNorm over (N, H, W). MindSpore's momentum 0.9 is what PyTorch calls 0.1."""
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.9)


class SqueezeExcitation(nn.Cell):
    """Scales each channel by a gate in (0, 1) computed from all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = Dense(channels, channels // SE_REDUCTION)
        self.fc2 = Dense(channels // SE_REDUCTION, channels)
        self.mean = ops.ReduceMean(keep_dims=False)

    def construct(self, x: Tensor) -> Tensor:
        gate = ops.sigmoid(self.fc2(ops.relu(self.fc1(self.mean(x, (2, 3))))))
        return x * ops.reshape(ops.cast(gate, x.dtype), (x.shape[0], x.shape[1], 1, 1))


class Shortcut(nn.SequentialCell):
    """Projection shortcut: 1x1 convolution and BatchNorm, if a block changes the shape."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            Conv2d(in_channels, out_channels, 1, stride=stride), batch_norm(out_channels)
        )


class BasicBlock(nn.Cell):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, width, 3, stride=stride, padding=1)
        self.bn1 = batch_norm(width)
        self.conv2 = Conv2d(width, width, 3, padding=1)
        self.bn2 = batch_norm(width)
        self.squeeze = squeeze
        if squeeze:
            self.se = SqueezeExcitation(width)
        self.project = stride != 1 or in_channels != width
        if self.project:
            self.downsample = Shortcut(in_channels, width, stride)

    def construct(self, x: Tensor) -> Tensor:
        y = ops.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.squeeze:
            y = self.se(y)
        if self.project:
            x = self.downsample(x)
        return ops.relu(y + x)

    def last_norm(self) -> nn.Cell:
        """The BatchNorm before the addition."""
        return self.bn2


class Bottleneck(nn.Cell):
    """1x1, 3x3 (with the stride) and 1x1 convolution (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = Conv2d(in_channels, width, 1)
        self.bn1 = batch_norm(width)
        self.conv2 = Conv2d(width, width, 3, stride=stride, padding=1)
        self.bn2 = batch_norm(width)
        self.conv3 = Conv2d(width, out_channels, 1)
        self.bn3 = batch_norm(out_channels)
        self.squeeze = squeeze
        if squeeze:
            self.se = SqueezeExcitation(out_channels)
        self.project = stride != 1 or in_channels != out_channels
        if self.project:
            self.downsample = Shortcut(in_channels, out_channels, stride)

    def construct(self, x: Tensor) -> Tensor:
        y = ops.relu(self.bn1(self.conv1(x)))
        y = ops.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.squeeze:
            y = self.se(y)
        if self.project:
            x = self.downsample(x)
        return ops.relu(y + x)

    def last_norm(self) -> nn.Cell:
        """The BatchNorm before the addition."""
        return self.bn3


class MaxPool(nn.Cell):
    """3x3 max pooling, stride 2, padding 1, of a non-negative feature map.

    After a ReLU, padding with zeros equals the usual padding with minus infinity. Unlike
    MindSpore's own padded pooling it can be exported. The border is made from the map itself
    (times 0) and not from a constant, which would fix the batch size of an exported graph;
    MindSpore's ``Pad`` is ten times slower on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = ops.MaxPool(kernel_size=3, strides=2, pad_mode="valid")
        self.join_rows = ops.Concat(2)
        self.join_columns = ops.Concat(3)

    def construct(self, x: Tensor) -> Tensor:
        row = x[:, :, :1, :] * 0.0
        x = self.join_rows((row, x, row))
        column = x[:, :, :, :1] * 0.0
        return self.pool(self.join_columns((column, x, column)))


class ResNet(nn.Cell):
    """(N, 3, H, W) -> (N, C, H', W'), after the last ReLU; C is ``out_channels``.

    Args:
        layout: stages and kind of block.
        stem: "imagenet" (7x7 stride 2, 3x3 max pooling stride 2) or "small" (3x3 stride 1).
    """

    def __init__(self, layout: Layout, stem: str = "imagenet") -> None:
        super().__init__()
        block: type[BasicBlock] | type[Bottleneck] = Bottleneck if layout.bottleneck else BasicBlock
        if stem not in STEM_KERNELS:
            raise MultigrainError.field(
                "spec.model.stem", f"unknown stem {stem!r}: {' or '.join(STEM_KERNELS)}"
            )
        kernel = STEM_KERNELS[stem]
        self.pooled = stem == "imagenet"
        self.conv1 = Conv2d(3, 64, kernel, stride=2 if self.pooled else 1, padding=kernel // 2)
        if self.pooled:
            self.maxpool = MaxPool()
        self.bn1 = batch_norm(64)
        channels = 64
        stages = []
        for stage, count in enumerate(layout.blocks):
            width = 64 * 2**stage
            cells = []
            for index in range(count):
                stride = 2 if index == 0 and stage > 0 else 1
                cells.append(block(channels, width, stride, layout.squeeze))
                channels = width * block.expansion
            stages.append(nn.SequentialCell(cells))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.out_channels = channels

    def construct(self, x: Tensor) -> Tensor:
        x = ops.relu(self.bn1(self.conv1(x)))
        if self.pooled:
            x = self.maxpool(x)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def build_trunk(name: str, stem: str = "imagenet") -> ResNet:
    """Builds a trunk, with weights of 0 (see ``multigrain.model.parameters``).

    Raises:
        MultigrainError: INVALID_FIELD, for an unknown name or stem.
    """
    if name not in LAYOUTS:
        raise MultigrainError.field(
            "spec.model.trunk", f"unknown trunk {name!r}: one of {', '.join(LAYOUTS)}"
        )
    return ResNet(LAYOUTS[name], stem)
