"""The presets: YAML files of this package with the keys of a training specification.

Two keys are a preset's own: ``description`` (one line) and ``extends`` (the name of another
preset, whose values hold where this one says nothing).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from multigrain.errors import MultigrainError
from multigrain.specs.violations import nearest
from multigrain.strict_yaml import parse_mapping

_SUFFIX = ".yaml"


@dataclass(frozen=True)
class Preset:
    """A preset's name and its description in one line."""

    name: str
    description: str


def list_presets() -> tuple[Preset, ...]:
    """Every preset, by name."""
    return tuple(Preset(name, str(_document(name)["description"])) for name in _names())


def preset_values(name: str) -> dict[str, Any]:
    """The values a preset sets, those it extends included, as nested mappings.

    Raises:
        MultigrainError: INVALID_FIELD for ``spec.preset``, if there is no such preset.
    """
    if name not in _names():
        guess = nearest(name, _names())
        hint = f"did you mean '{guess}'? There are" if guess else "there are"
        raise MultigrainError.field("spec.preset", f"unknown preset: {hint} {', '.join(_names())}")
    values = dict(_document(name))
    del values["description"]
    base = values.pop("extends", None)
    return merge(preset_values(str(base)), values) if base is not None else merge({}, values)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A new mapping with ``over`` on top of ``base``: groups are merged, all else replaced."""
    merged = {
        key: merge(value, {}) if isinstance(value, Mapping) else value
        for key, value in base.items()
    }
    for key, value in over.items():
        if isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


@cache
def _names() -> tuple[str, ...]:
    folder = resources.files("multigrain.specs") / "presets"
    return tuple(
        sorted(
            entry.name.removesuffix(_SUFFIX)
            for entry in folder.iterdir()
            if entry.name.endswith(_SUFFIX)
        )
    )


@cache
def _document(name: str) -> Mapping[str, Any]:
    file = resources.files("multigrain.specs") / "presets" / f"{name}{_SUFFIX}"
    return parse_mapping(file.read_text(encoding="utf-8"), f"preset {name}")
