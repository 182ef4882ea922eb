"""Names and shapes of a ResNet's state in PyTorch, written out from the public architecture.

Not derived from the package's tables, which are tested against this.
"""

from __future__ import annotations

Shape = tuple[int, ...]

BLOCKS = {
    "resnet18": [2, 2, 2, 2],
    "resnet34": [3, 4, 6, 3],
    "resnet50": [3, 4, 6, 3],
    "resnet101": [3, 4, 23, 3],
    "resnet152": [3, 8, 36, 3],
    "se_resnet50": [3, 4, 6, 3],
}
BASIC = ("resnet18", "resnet34")


def pytorch_shapes(
    trunk: str, classes: int, *, prefix: str = "", head: str = "fc"
) -> dict[str, Shape]:
    """All entries of ``state_dict()``, including BatchNorm's counters."""
    shapes: dict[str, Shape] = {}

    def norm(name: str, channels: int) -> None:
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{prefix}{name}.{kind}"] = (channels,)
        shapes[f"{prefix}{name}.num_batches_tracked"] = ()

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{prefix}{name}.weight"] = (out, into, kernel, kernel)

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    into = 64
    for stage, count in enumerate(BLOCKS[trunk], 1):
        width = [64, 128, 256, 512][stage - 1]
        for index in range(count):
            name = f"layer{stage}.{index}"
            out = width if trunk in BASIC else 4 * width
            kernels = [3, 3] if trunk in BASIC else [1, 3, 1]
            channels = [into, *[width] * (len(kernels) - 1), out]
            for n, kernel in enumerate(kernels, 1):
                conv(f"{name}.conv{n}", channels[n], channels[n - 1], kernel)
                norm(f"{name}.bn{n}", channels[n])
            if trunk.startswith("se_"):
                conv(f"{name}.se.fc1", out // 16, out, 1)
                shapes[f"{prefix}{name}.se.fc1.bias"] = (out // 16,)
                conv(f"{name}.se.fc2", out, out // 16, 1)
                shapes[f"{prefix}{name}.se.fc2.bias"] = (out,)
            if into != out:
                conv(f"{name}.downsample.0", out, into, 1)
                norm(f"{name}.downsample.1", out)
            into = out
    shapes[f"{head}.weight"] = (classes, into)
    shapes[f"{head}.bias"] = (classes,)
    return shapes
