"""Presets: YAML files of this package with the keys of a training specification.

Two further keys are allowed: ``description`` (one line) and ``extends`` (the name of another
preset, whose values are the defaults of this one).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from multigrain.errors import MultigrainError
from multigrain.specs.violations import nearest
from multigrain.strict_yaml import parse_mapping

_SUFFIX = ".yaml"


@cache
def preset_names() -> tuple[str, ...]:
    """Returns the names of all presets, sorted."""
    folder = resources.files("multigrain.specs") / "presets"
    return tuple(
        sorted(
            entry.name.removesuffix(_SUFFIX)
            for entry in folder.iterdir()
            if entry.name.endswith(_SUFFIX)
        )
    )


def preset_values(name: str) -> dict[str, Any]:
    """Returns the values of a preset and of those it extends, as nested mappings.

    Raises:
        MultigrainError: INVALID_FIELD for ``spec.preset``, if there is no such preset.
    """
    names = preset_names()
    if name not in names:
        guess = nearest(name, names)
        hint = f"did you mean '{guess}'? There are" if guess else "there are"
        raise MultigrainError.field(
            "spec.preset", f"unknown preset '{name}': {hint} {', '.join(names)}"
        )
    values = dict(_document(name))
    del values["description"]
    base = values.pop("extends", None)
    return merge(preset_values(str(base)), values) if base is not None else merge({}, values)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``base`` overridden by ``over``: mappings are merged, other values replaced."""
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
def _document(name: str) -> Mapping[str, Any]:
    file = resources.files("multigrain.specs") / "presets" / f"{name}{_SUFFIX}"
    return parse_mapping(file.read_text(encoding="utf-8"), f"preset {name}")
