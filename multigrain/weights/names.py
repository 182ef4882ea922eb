"""Parameter names of other programs, as tables that map them to this package's and back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """A name pattern with numbers: ``layer{stage}.{block}.conv{n}.weight``."""

    text: str

    def match(self, name: str) -> dict[str, str] | None:
        """Returns the numbers in a matching name; None if it does not match."""
        found = self._pattern.fullmatch(name)
        return found.groupdict() if found else None

    def fill(self, numbers: dict[str, str]) -> str:
        """Returns the name with these numbers."""
        return self.text.format(**numbers)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # re.split with a group returns text and field names alternately.
        parts = _FIELD.split(self.text)
        return re.compile(
            "".join(
                f"(?P<{part}>[0-9]+)" if index % 2 else re.escape(part)
                for index, part in enumerate(parts)
            )
        )


@dataclass(frozen=True)
class Rule:
    """Maps one parameter name.

    Args:
        source: the other program's name.
        native: this package's name, with the same numbers.
        dense: the source is a 1x1 convolution (O, I, 1, 1), here it is a dense layer (O, I).
    """

    source: Template
    native: Template
    dense: bool = False


@dataclass(frozen=True)
class Scheme:
    """The naming scheme of one program.

    Args:
        name: the program's name.
        rules: one for every parameter; unambiguous in both directions.
        ignored: further entries that the forward pass does not need.
    """

    name: str
    rules: tuple[Rule, ...]
    ignored: tuple[Template, ...]

    def to_native(self, source: str) -> tuple[str, Rule] | None:
        """Returns this package's name of a source name, and the rule; None if there is none."""
        for rule in self.rules:
            numbers = rule.source.match(source)
            if numbers is not None:
                return rule.native.fill(numbers), rule
        return None

    def to_source(self, native: str) -> str | None:
        """Returns the source name of this package's name; None if there is none."""
        for rule in self.rules:
            numbers = rule.native.match(native)
            if numbers is not None:
                return rule.source.fill(numbers)
        return None

    def ignores(self, source: str) -> bool:
        """Returns whether a source name is known but not needed."""
        return any(template.match(source) is not None for template in self.ignored)


def make_rules(*pairs: tuple[str, str], dense: bool = False) -> tuple[Rule, ...]:
    """Makes rules from pairs (source name, this package's name)."""
    return tuple(Rule(Template(source), Template(native), dense) for source, native in pairs)


def batch_norm_rules(source: str, native: str) -> tuple[Rule, ...]:
    """Makes the rules of a BatchNorm with PyTorch's names."""
    return make_rules(
        (f"{source}.weight", f"{native}.gamma"),
        (f"{source}.bias", f"{native}.beta"),
        (f"{source}.running_mean", f"{native}.moving_mean"),
        (f"{source}.running_var", f"{native}.moving_variance"),
    )


def trunk_rules(prefix: str = "") -> tuple[Rule, ...]:
    """Makes the rules of a ResNet trunk with torchvision's names, each after ``prefix``."""
    block = f"{prefix}layer{{stage}}.{{block}}"
    native = "trunk.layer{stage}.{block}"
    return (
        *make_rules((f"{prefix}conv1.weight", "trunk.conv1.weight")),
        *batch_norm_rules(f"{prefix}bn1", "trunk.bn1"),
        *make_rules((f"{block}.conv{{n}}.weight", f"{native}.conv{{n}}.weight")),
        *batch_norm_rules(f"{block}.bn{{n}}", f"{native}.bn{{n}}"),
        *make_rules((f"{block}.downsample.0.weight", f"{native}.downsample.0.weight")),
        *batch_norm_rules(f"{block}.downsample.1", f"{native}.downsample.1"),
    )


def trunk_ignored(prefix: str = "") -> tuple[Template, ...]:
    """Names of BatchNorm's batch counters, which a fixed momentum does not use."""
    return tuple(
        Template(f"{prefix}{norm}.num_batches_tracked")
        for norm in (
            "bn1",
            "layer{stage}.{block}.bn{n}",
            "layer{stage}.{block}.downsample.1",
        )
    )


# timm's plain ResNets have torchvision's names, too.
TORCHVISION = Scheme(
    name="torchvision",
    rules=(
        *trunk_rules(),
        *make_rules(("fc.weight", "classifier.weight"), ("fc.bias", "classifier.bias")),
    ),
    ignored=trunk_ignored(),
)

_SE = "layer{stage}.{block}.se.fc{n}"

# timm's SE-ResNets have torchvision's names, and SE gates as 1x1 convolutions.
TIMM = Scheme(
    name="timm",
    rules=(
        *TORCHVISION.rules,
        *make_rules((f"{_SE}.weight", f"trunk.{_SE}.weight"), dense=True),
        *make_rules((f"{_SE}.bias", f"trunk.{_SE}.bias")),
    ),
    ignored=TORCHVISION.ignored,
)

# The checkpoints published with the MultiGrain paper.
PUBLISHED = Scheme(
    name="MultiGrain (published)",
    rules=(
        *trunk_rules("features."),
        *make_rules(
            ("pool.p", "pool.p"),
            ("classifier.weight", "classifier.weight"),
            ("classifier.bias", "classifier.bias"),
        ),
    ),
    ignored=trunk_ignored("features."),
)

# Parameter names of incompatible ResNet variants -> why the file cannot be used.
INCOMPATIBLE_NETWORKS: dict[str, str] = {
    "layer0.conv1.weight": (
        "it is an SE-ResNet of the old variant (layer0, se_module), which has its stride in the "
        "1x1 convolution and rounds up in max pooling; use timm's seresnet50"
    ),
    "layer1.0.down_sample_layer.0.weight": (
        "it is a ResNet of MindSpore's ModelZoo (down_sample_layer), whose layers with stride 2 "
        "pad on one side only and whose BatchNorm has another epsilon; train it again here"
    ),
    "conv1.0.weight": "its stem has three convolutions (ResNet-D); only one is supported",
    "whitening.pca.pca_P": (
        "its whitening is already folded into the classifier; use the checkpoint from before "
        "the whitening, which an export computes again"
    ),
    "features.layer0.conv1.weight": "its trunk is a SENet-154, which is not supported",
}


def incompatibility(names: Iterable[str]) -> str:
    """Returns why a network with these parameter names is not supported; empty if it may be."""
    present = set(names)
    return next((why for name, why in INCOMPATIBLE_NETWORKS.items() if name in present), "")
