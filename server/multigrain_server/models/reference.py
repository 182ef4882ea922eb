"""How a model is named: "name", "name@version" or an alias."""

from __future__ import annotations

import re
from dataclasses import dataclass

from multigrain.errors import MultigrainError
from multigrain.specs.export import NAME_PATTERN

_NAME = re.compile(NAME_PATTERN)
_MAX_VERSION = 2**63 - 1
_MAX_DIGITS = len(str(_MAX_VERSION))


@dataclass(frozen=True, order=True)
class ModelVersion:
    """One version of one model."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class ModelReference:
    """What a request says. ``name`` may be an alias; ``version`` None = not stated."""

    name: str
    version: int | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"

    @classmethod
    def parse(cls, text: str, field: str = "model") -> ModelReference:
        """Reads "name" or "name@version".

        Raises:
            MultigrainError: INVALID_FIELD naming ``field``.
        """
        name, at, version = text.partition("@")
        # Not match(): its "$" lets a line break pass at the end.
        if not _NAME.fullmatch(name):
            raise MultigrainError.field(
                field,
                f"{text[:80]!r} is not a model name: use 1 to 64 letters, digits, dots, dashes "
                'or underscores, optionally followed by "@" and a version',
            )
        if not at:
            return cls(name)
        digits = version.isascii() and version.isdigit() and len(version) <= _MAX_DIGITS
        if not (digits and 1 <= int(version) <= _MAX_VERSION):
            raise MultigrainError.field(
                field, f'{text[:80]!r}: what follows "@" must be a version, a whole number from 1'
            )
        return cls(name, int(version))


def check_name(text: str, field: str) -> str:
    """A name without a version. Raises MultigrainError INVALID_FIELD."""
    reference = ModelReference.parse(text, field)
    if reference.version is not None:
        raise MultigrainError.field(field, f'{text[:80]!r}: must not contain "@"')
    return text
