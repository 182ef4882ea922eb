"""One program's names of parameters, as a table that is read in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """A name with numbers in it: ``layer{stage}.{block}.conv{n}.weight``."""

    text: str

    def match(self, name: str) -> dict[str, str] | None:
        """The numbers of a name of this form; None for any other name."""
        found = self._pattern.fullmatch(name)
        return found.groupdict() if found else None

    def fill(self, numbers: dict[str, str]) -> str:
        """The name with these numbers."""
        return self.text.format(**numbers)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # re.split with a group gives text and field names in turns.
        parts = _FIELD.split(self.text)
        return re.compile(
            "".join(
                f"(?P<{part}>[0-9]+)" if index % 2 else re.escape(part)
                for index, part in enumerate(parts)
            )
        )


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    Args:
        source: the other program's name.
        ours: ours, with the same numbers.
        dense: the source is a 1x1 convolution (O, I, 1, 1), ours the same dense layer (O, I).
    """

    source: Template
    ours: Template
    dense: bool = False


@dataclass(frozen=True)
class Scheme:
    """All names of one program.

    Args:
        name: as users know it.
        rules: every parameter's line; no two lines share a name on either side.
        ignored: what those programs store besides and a forward pass does not need.
    """

    name: str
    rules: tuple[Rule, ...]
    ignored: tuple[Template, ...]

    def ours(self, source: str) -> tuple[str, Rule] | None:
        """Our name for the other program's, and the line that says so."""
        for rule in self.rules:
            numbers = rule.source.match(source)
            if numbers is not None:
                return rule.ours.fill(numbers), rule
        return None

    def source(self, ours: str) -> str | None:
        """The other program's name for ours."""
        for rule in self.rules:
            numbers = rule.ours.match(ours)
            if numbers is not None:
                return rule.source.fill(numbers)
        return None

    def ignores(self, source: str) -> bool:
        """Whether this entry is known, and no parameter."""
        return any(template.match(source) is not None for template in self.ignored)


def table(*lines: tuple[str, str], dense: bool = False) -> tuple[Rule, ...]:
    """Rules from pairs (their name, our name)."""
    return tuple(Rule(Template(source), Template(ours), dense) for source, ours in lines)


def norm_table(source: str, ours: str) -> tuple[Rule, ...]:
    """The four lines of a BatchNorm: PyTorch's names of scale, shift and running statistics."""
    return table(
        (f"{source}.weight", f"{ours}.gamma"),
        (f"{source}.bias", f"{ours}.beta"),
        (f"{source}.running_mean", f"{ours}.moving_mean"),
        (f"{source}.running_var", f"{ours}.moving_variance"),
    )


# MERGED: torchvision's names of a ResNet; timm's plain ResNets have the same.


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


# MERGED: timm's names of an SE-ResNet: torchvision's, and the gates as 1x1 convolutions.


_THEIRS = "layer{stage}.{block}.se.fc{n}"
_OURS = "trunk.layer{stage}.{block}.se.fc{n}"

TIMM = Scheme(
    name="timm",
    rules=(
        *TORCHVISION.rules,
        *table((f"{_THEIRS}.weight", f"{_OURS}.weight"), dense=True),
        *table((f"{_THEIRS}.bias", f"{_OURS}.bias")),
    ),
    ignored=TORCHVISION.ignored,
)


# MERGED: The names in the checkpoints published with the MultiGrain paper.


PUBLISHED = Scheme(
    name="MultiGrain (published)",
    rules=(
        *trunk_table("features."),
        *table(
            ("pool.p", "pool.p"),
            ("classifier.weight", "classifier.weight"),
            ("classifier.bias", "classifier.bias"),
        ),
    ),
    ignored=trunk_ignored("features."),
)


# MERGED: Names that mark networks which only look like ours.


# A name in the file -> why the file cannot be taken.
INCOMPATIBLE_NETWORKS: dict[str, str] = {
    "layer0.conv1.weight": (
        "it is an SE-ResNet of the old form (layer0, se_module), whose stride stands in the 1x1 "
        "convolution and whose max pooling rounds up; take timm's seresnet50"
    ),
    "layer1.0.down_sample_layer.0.weight": (
        "it is a ResNet of MindSpore's ModelZoo (down_sample_layer), whose layers of stride 2 pad "
        "on one side only and whose BatchNorms have another epsilon; train it anew here"
    ),
    "conv1.0.weight": "its stem has three convolutions (ResNet-D); ours has one",
    "whitening.pca.pca_P": (
        "its whitening is folded into the classifier already; take the checkpoint from before "
        "the whitening, which export computes anew"
    ),
    "features.layer0.conv1.weight": "its trunk is a SENet-154, which is not among ours",
}


def incompatibility(names: Iterable[str]) -> str:
    """Why weights with these names are another network's; empty if nothing says so."""
    present = set(names)
    return next((why for name, why in INCOMPATIBLE_NETWORKS.items() if name in present), "")
