"""Messages for pydantic's validation errors that name the field, the value and the fix."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

import annotated_types
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from multigrain.errors import ErrorKind, FieldViolation, MultigrainError
from multigrain.specs.base import Spec

# NAME_PATTERN of ``multigrain.specs.export`` as text.
NAME_RULE = "at most 64 letters, digits, '.', '_' and '-', starting with a letter or digit"

_MAX_SHOWN = 60
_NAMES_SHOWN = 12


def from_validation(spec: type[Spec], error: ValidationError) -> list[FieldViolation]:
    """Returns a violation for each error that validating ``spec`` raised.

    Field paths begin with ``spec.`` for every class.
    """
    return [_violation(spec, dict(found)) for found in error.errors(include_url=False)]


def refusal(violations: Sequence[FieldViolation]) -> MultigrainError:
    """Returns an INVALID_FIELD error with all violations; at least one is needed."""
    message = "; ".join(f"{violation.field}: {violation.message}" for violation in violations)
    return MultigrainError(ErrorKind.INVALID_FIELD, message, violations=tuple(violations))


def nearest(name: str, candidates: Sequence[str]) -> str | None:
    """Returns the candidate that ``name`` is probably a typo of, or None."""
    lowered = {candidate.lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def show(value: object) -> str:
    """Formats a value for a message, truncated to one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a group of fields"
    if isinstance(value, list | tuple):
        return "a list"
    shown = repr(value[:_MAX_SHOWN] if isinstance(value, str) else value)
    return shown if len(shown) <= _MAX_SHOWN + 2 else f"{shown[:_MAX_SHOWN]}..."


def _violation(spec: type[Spec], found: Mapping[str, Any]) -> FieldViolation:
    location = tuple(found["loc"])
    path = _path(location)
    kind = str(found["type"])
    if kind in ("extra_forbidden", "invalid_key"):
        return FieldViolation(path, _unknown(spec, location))
    return FieldViolation(path, _wrong(kind, found, _field(spec, location)))


def _wrong(kind: str, found: Mapping[str, Any], field: FieldInfo | None) -> str:
    value = found["input"]
    given = f"is {show(value)}"
    if kind == "missing":
        return "required"
    if kind == "literal_error":
        choices = _choices(field.annotation) if field else []
        guess = nearest(value, choices) if isinstance(value, str) else None
        hint = f"; did you mean '{guess}'?" if guess else ""
        return f"{given}, must be {_alternatives(choices)}{hint}"
    if kind in ("int_type", "int_from_float", "int_parsing"):
        return f"{given}, must be a whole number{_range(field)}"
    if kind in ("float_type", "float_parsing"):
        infinite = isinstance(value, str) and value.strip("+-").lower() in ("inf", "infinity")
        hint = "; infinity is written .inf" if infinite else ""
        return f"{given}, must be a number{_range(field)}{hint}"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return f"{given}, must be{_range(field)}"
    if kind in ("bool_type", "bool_parsing"):
        return f"{given}, must be true or false"
    if kind == "string_type":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return f"{given}, must be text{'; write it in quotes' if number else ''}"
    if kind == "string_pattern_mismatch":  # only names have a pattern
        return f"{given}, must be {NAME_RULE}"
    if kind == "tuple_type":
        return f"{given}, must be a list, such as [a, b]"
    if kind == "model_type":
        return f"{given}, must be a group of fields"
    return f"{given}: {found['msg']}"


def _unknown(spec: type[Spec], location: tuple[Any, ...]) -> str:
    *parents, name = location
    owner = _owner(spec, parents)
    names = list(owner.model_fields) if owner else []
    guess = nearest(str(name), names)
    if guess is None:
        guess = next((path for path in _leaves(spec) if path.split(".")[-1] == str(name)), None)
    if guess is not None:
        return f"unknown field; did you mean '{guess}'?"
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f"unknown field; the fields here are {shown}"


def _leaves(spec: type[Spec], prefix: str = "") -> Iterator[str]:
    for name, field in spec.model_fields.items():
        yield prefix + name
        if nested := _nested(field):
            yield from _leaves(nested, f"{prefix}{name}.")


def _nested(field: FieldInfo) -> type[Spec] | None:
    kind = field.annotation
    if get_origin(kind) is tuple:  # a list of groups
        kind = get_args(kind)[0]
    return kind if isinstance(kind, type) and issubclass(kind, Spec) else None


def _owner(spec: type[Spec], parents: Sequence[Any]) -> type[Spec] | None:
    owner: type[Spec] | None = spec
    for name in parents:
        if isinstance(name, int):  # an index of a list
            continue
        field = owner.model_fields.get(name) if owner else None
        owner = _nested(field) if field else None
    return owner


def _field(spec: type[Spec], location: Sequence[Any]) -> FieldInfo | None:
    names = [part for part in location if isinstance(part, str)]
    owner = _owner(spec, names[:-1]) if names else None
    return owner.model_fields.get(names[-1]) if owner else None


def _choices(annotation: object) -> list[str]:
    """Returns the values of all Literals in an annotation, ``tuple[Literal[...], ...]`` too."""
    if isinstance(annotation, str):
        return [annotation]
    return [text for inner in get_args(annotation) for text in _choices(inner)]


def _alternatives(choices: Sequence[str]) -> str:
    quoted = [f"'{choice}'" for choice in choices]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _range(field: FieldInfo | None) -> str:
    """Formats the allowed range as " at least 1 and at most 8"; empty if there is none."""
    parts: list[str] = []
    for bound in field.metadata if field else ():
        if isinstance(bound, annotated_types.Gt):
            parts.append(f"greater than {_number(bound.gt)}")
        elif isinstance(bound, annotated_types.Ge):
            parts.append(f"at least {_number(bound.ge)}")
        elif isinstance(bound, annotated_types.Lt):
            parts.append(f"less than {_number(bound.lt)}")
        elif isinstance(bound, annotated_types.Le):
            parts.append(f"at most {_number(bound.le)}")
    return " " + " and ".join(parts) if parts else ""


def _number(bound: object) -> str:
    return "infinity" if bound == math.inf else str(bound)


def _path(location: Sequence[Any]) -> str:
    path = "spec"
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path
