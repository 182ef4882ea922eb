"""Resolving a specification: preset, then the user's fields, then all checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from multigrain.errors import ErrorKind, FieldViolation, MultigrainError
from multigrain.specs import violations
from multigrain.specs.base import Spec
from multigrain.specs.checks import check_evaluation, check_export, check_training
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.specs.export import ExportSpec
from multigrain.specs.presets import merge, preset_values
from multigrain.specs.training import TrainingSpec

_S = TypeVar("_S", bound=Spec)


def resolve_training(overrides: Mapping[str, Any]) -> TrainingSpec:
    """Resolves a training specification from a preset and the fields set by a user.

    Args:
        overrides: nested mappings with the keys of ``multigrain.v1.TrainingSpec``; ``preset``
            names the preset that they override (absent or empty: the defaults). Groups are merged
            field by field, lists are replaced.

    Raises:
        MultigrainError: INVALID_FIELD with every violation; field paths begin with ``spec.``.
    """
    base, found = _preset(overrides.get("preset", ""))
    values = _held_out(merge(base, overrides), overrides)
    spec = _validate(TrainingSpec, values, found)
    return _checked(spec, check_training(spec))


def resolve_evaluation(overrides: Mapping[str, Any]) -> EvaluationSpec:
    """Resolves an evaluation specification; see :func:`resolve_training`."""
    overrides = _without_empty(overrides, "tasks")
    if isinstance(exponent := overrides.get("exponent"), Mapping):
        overrides["exponent"] = _without_empty(exponent, "candidates")
    spec = _validate(EvaluationSpec, overrides, [])
    return _checked(spec, check_evaluation(spec))


def resolve_export(overrides: Mapping[str, Any]) -> ExportSpec:
    """Resolves an export specification; see :func:`resolve_training`.

    Raises:
        MultigrainError: also UNSUPPORTED, for the format "air" on other devices than Ascend.
    """
    spec = _validate(ExportSpec, _without_empty(overrides, "formats"), [])
    _checked(spec, check_export(spec))
    if "air" in spec.formats and spec.devices.target != "ascend":
        reason = (
            "MindSpore writes the format 'air' on Ascend only; omit it, or export with "
            "devices.target 'ascend'"
        )
        raise MultigrainError(
            ErrorKind.UNSUPPORTED,
            f"spec.formats: {reason}",
            violations=(FieldViolation("spec.formats", reason),),
        )
    return spec


def _held_out(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Completes what follows from the held-out images, where neither user nor preset says it.

    A folder of held-out images replaces the share that a preset holds out, and wherever there are
    held-out images, they are scored after every epoch. Values of a wrong type stay as they are.
    """
    data, given = values.get("dataset"), overrides.get("dataset")
    if not isinstance(data, Mapping):
        return values
    if data.get("val_path") and not (isinstance(given, Mapping) and "val_fraction" in given):
        values = merge(values, {"dataset": {"val_fraction": 0.0}})
    schedule = values.get("evaluation", {})
    if not isinstance(schedule, Mapping) or "every_epochs" in schedule:
        return values
    if data.get("val_path") or values["dataset"].get("val_fraction"):
        values = merge(values, {"evaluation": {"every_epochs": 1}})
    return values


def _preset(name: object) -> tuple[dict[str, Any], list[FieldViolation]]:
    """Returns a preset's values; an unknown preset is reported with the other violations."""
    if not isinstance(name, str) or not name:
        return {}, []  # pydantic reports a wrong type
    try:
        return preset_values(name), []
    except MultigrainError as error:
        return {}, list(error.violations)


def _validate(kind: type[_S], values: Mapping[str, Any], found: list[FieldViolation]) -> _S:
    try:
        # Strict: a string or a boolean is not converted to a number.
        spec = kind.model_validate(_with_tuples(values), strict=True)
    except ValidationError as error:
        raise violations.refusal(found + violations.from_validation(kind, error)) from None
    if found:
        raise violations.refusal(found)
    return spec


def _checked(spec: _S, found: list[FieldViolation]) -> _S:
    if found:
        raise violations.refusal(found)
    return spec


def _with_tuples(value: Any) -> Any:
    """Converts lists to the tuples of immutable specifications."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(inner) for inner in value)
    return value


def _without_empty(overrides: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Drops a list if it is empty: in the contract that means the default."""
    return {key: value for key, value in overrides.items() if key != name or value not in ([], ())}
