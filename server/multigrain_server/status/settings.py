"""The specification of a job as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from multigrain.errors import MultigrainError
from multigrain.jobs.job_request import JobRequest
from multigrain.specs.presets import preset_values
from multigrain.specs.training import TrainingSpec


@dataclass(frozen=True)
class Setting:
    """A field of a specification; ``preset``: its value there, if it differs."""

    name: str
    value: str
    preset: str | None = None


@dataclass(frozen=True)
class Difference:
    """A field whose values differ between runs; "" where a run has no such field."""

    name: str
    values: tuple[str, ...]


def settings(request: JobRequest) -> tuple[Setting, ...]:
    """Every field of a job's specification, under its dotted name."""
    base: Mapping[str, str] = {}
    if request.training is not None:
        base = _preset(request.training.preset)
    values = dict(_flat(request.spec.model_dump(mode="json")))
    return tuple(
        Setting(name, value, base[name] if base.get(name, value) != value else None)
        for name, value in values.items()
    )


def differences(requests: Sequence[JobRequest]) -> tuple[Difference, ...]:
    """The fields in which the specifications of jobs differ."""
    flat = [dict(_flat(request.spec.model_dump(mode="json"))) for request in requests]
    names = dict.fromkeys(name for values in flat for name in values)
    rows = (Difference(name, tuple(values.get(name, "") for values in flat)) for name in names)
    return tuple(row for row in rows if len(set(row.values)) > 1)


@cache
def _preset(name: str) -> dict[str, str]:
    """The fields of a preset; empty if this version has none of that name."""
    try:
        values = preset_values(name or "defaults")
        return dict(_flat(TrainingSpec.model_validate(values).model_dump(mode="json")))
    except (MultigrainError, ValueError):
        return {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list):
            yield name, ", ".join(map(_text, value))
        else:
            yield name, _text(value)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
