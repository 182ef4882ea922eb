"""torchvision's names of a ResNet; timm's plain ResNets have the same."""

from __future__ import annotations

from multigrain.checkpoint.naming.scheme import Rule, Scheme, Template, norm_table, table


def trunk_table(prefix: str = "") -> tuple[Rule, ...]:
    """The trunk's lines, where the program puts ``prefix`` before every name."""
    block = f"{prefix}layer{{stage}}.{{block}}"
    ours = "trunk.layer{stage}.{block}"
    return (
        *table((f"{prefix}conv1.weight", "trunk.conv1.weight")),
        *norm_table(f"{prefix}bn1", "trunk.bn1"),
        *table((f"{block}.conv{{n}}.weight", f"{ours}.conv{{n}}.weight")),
        *norm_table(f"{block}.bn{{n}}", f"{ours}.bn{{n}}"),
        *table((f"{block}.downsample.0.weight", f"{ours}.downsample.0.weight")),
        *norm_table(f"{block}.downsample.1", f"{ours}.downsample.1"),
    )


def trunk_ignored(prefix: str = "") -> tuple[Template, ...]:
    """Counters of batches seen, which BatchNorm with a fixed momentum does not use."""
    return tuple(
        Template(f"{prefix}{norm}.num_batches_tracked")
        for norm in (
            "bn1",
            "layer{stage}.{block}.bn{n}",
            "layer{stage}.{block}.downsample.1",
        )
    )


TORCHVISION = Scheme(
    name="torchvision",
    rules=(
        *trunk_table(),
        *table(("fc.weight", "classifier.weight"), ("fc.bias", "classifier.bias")),
    ),
    ignored=trunk_ignored(),
)
