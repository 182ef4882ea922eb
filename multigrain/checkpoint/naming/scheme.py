"""One program's names of parameters, as a table that is read in both directions."""

from __future__ import annotations

import re
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
