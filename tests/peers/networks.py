"""ResNets in plain PyTorch with torchvision's and timm's names.

Written from the papers (arXiv 1512.03385 with the stride in the 3x3 convolution; 1709.01507)
and those libraries' public lists of parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.peers.names import BASIC, BLOCKS

GEM_EPSILON = 1e-6


def gem(x: Tensor, p: Tensor | float) -> Tensor:
    """(N, C, H, W) -> (N, C): the mean of x^p over positions, to the power 1/p."""
    return x.clamp(min=GEM_EPSILON).pow(p).mean((2, 3)).pow(1.0 / p)


class Gate(nn.Module):
    """Squeeze-and-excitation with timm's 1x1 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(mean))))


class Block(nn.Module):
    """A basic block (two 3x3) or a bottleneck (1x1, 3x3 with the stride, 1x1)."""

    def __init__(self, into: int, width: int, stride: int, basic: bool, gate: bool) -> None:
        super().__init__()
        kernels = [3, 3] if basic else [1, 3, 1]
        out = width if basic else 4 * width
        channels = [into, *[width] * (len(kernels) - 1), out]
        self.count = len(kernels)
        first_3x3 = kernels.index(3)
        for n, kernel in enumerate(kernels):
            conv = nn.Conv2d(
                channels[n],
                channels[n + 1],
                kernel,
                stride=stride if n == first_3x3 else 1,
                padding=kernel // 2,
                bias=False,
            )
            self.add_module(f"conv{n + 1}", conv)
            self.add_module(f"bn{n + 1}", nn.BatchNorm2d(channels[n + 1]))
        self.se = Gate(out) if gate else None
        self.downsample = None
        if stride != 1 or into != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(into, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for n in range(1, self.count + 1):
            y = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(y))
            if n < self.count:
                y = torch.relu(y)
        if self.se is not None:
            y = self.se(y)
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(nn.Module):
    """(N, 3, H, W) -> embedding (N, C) and logits (N, K); ``p`` = 1 is torchvision's ResNet."""

    def __init__(self, trunk: str, classes: int, p: float = 1.0) -> None:
        super().__init__()
        self.p = p
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        into = 64
        basic = trunk in BASIC
        for stage, count in enumerate(BLOCKS[trunk]):
            width = 64 * 2**stage
            blocks = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Block(into, width, stride, basic, trunk.startswith("se_")))
                into = width if basic else 4 * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(into, classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        embedding = features.mean((2, 3)) if self.p == 1 else gem(features, self.p)
        return embedding, self.fc(embedding)
