"""The trunks' architectures, and the names and shapes of their parameters.

Does not import MindSpore.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]

SE_REDUCTION = 16
STEM_KERNELS = {"imagenet": 7, "small": 3}


@dataclass(frozen=True)
class Layout:
    """Architecture of a ResNet.

    Args:
        blocks: number of blocks in each of the four stages.
        bottleneck: bottleneck blocks instead of basic ones.
        squeeze: squeeze-and-excitation in every block.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    squeeze: bool = False

    @property
    def expansion(self) -> int:
        """Ratio of a block's output channels to its width."""
        return 4 if self.bottleneck else 1


LAYOUTS: dict[str, Layout] = {
    "resnet18": Layout((2, 2, 2, 2), bottleneck=False),
    "resnet34": Layout((3, 4, 6, 3), bottleneck=False),
    "resnet50": Layout((3, 4, 6, 3), bottleneck=True),
    "resnet101": Layout((3, 4, 23, 3), bottleneck=True),
    "resnet152": Layout((3, 8, 36, 3), bottleneck=True),
    # The SE-ResNet-50 of "Squeeze-and-Excitation Networks" (arXiv 1709.01507).
    "se_resnet50": Layout((3, 4, 6, 3), bottleneck=True, squeeze=True),
}


def trunk_shapes(trunk: str, stem: str = "imagenet") -> dict[str, Shape]:
    """Returns name and shape of every parameter and running statistic of a trunk.

    The names are those of ``multigrain.model.state.model_state``.
    """
    layout = LAYOUTS[trunk]
    kernel = STEM_KERNELS[stem]
    shapes: dict[str, Shape] = {"trunk.conv1.weight": (64, 3, kernel, kernel)}
    shapes |= _norm("trunk.bn1", 64)
    channels = 64
    for stage, count in enumerate(layout.blocks):
        width = 64 * 2**stage
        for index in range(count):
            prefix = f"trunk.layer{stage + 1}.{index}"
            shapes |= dict(_block(prefix, layout, channels, width))
            out_channels = width * layout.expansion
            if index == 0 and (stage > 0 or channels != out_channels):
                shapes[f"{prefix}.downsample.0.weight"] = (out_channels, channels, 1, 1)
                shapes |= _norm(f"{prefix}.downsample.1", out_channels)
            channels = out_channels
    return shapes


def trunk_of(shapes: Mapping[str, Shape]) -> tuple[str, str] | None:
    """Identifies trunk and stem by their parameters' names and shapes; None if there is no match.

    Args:
        shapes: by this package's names; those outside ``trunk.`` are ignored.
    """
    found = {name: shape for name, shape in shapes.items() if name.startswith("trunk.")}
    for trunk in LAYOUTS:
        for stem in STEM_KERNELS:
            if trunk_shapes(trunk, stem) == found:
                return trunk, stem
    return None


def _block(prefix: str, layout: Layout, channels: int, width: int) -> Iterator[tuple[str, Shape]]:
    out_channels = width * layout.expansion
    convolutions: list[Shape] = (
        [(width, channels, 1, 1), (width, width, 3, 3), (out_channels, width, 1, 1)]
        if layout.bottleneck
        else [(width, channels, 3, 3), (width, width, 3, 3)]
    )
    for number, shape in enumerate(convolutions, 1):
        yield f"{prefix}.conv{number}.weight", shape
        yield from _norm(f"{prefix}.bn{number}", shape[0]).items()
    if layout.squeeze:
        hidden = out_channels // SE_REDUCTION
        yield f"{prefix}.se.fc1.weight", (hidden, out_channels)
        yield f"{prefix}.se.fc1.bias", (hidden,)
        yield f"{prefix}.se.fc2.weight", (out_channels, hidden)
        yield f"{prefix}.se.fc2.bias", (out_channels,)


def _norm(prefix: str, channels: int) -> dict[str, Shape]:
    kinds = ("gamma", "beta", "moving_mean", "moving_variance")
    return {f"{prefix}.{kind}": (channels,) for kind in kinds}
