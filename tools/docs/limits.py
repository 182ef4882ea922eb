"""Types, defaults and limits of pydantic fields as text."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tools.docs.markdown import code

_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text"}


def default_text(value: object) -> str:
    """As it is written in YAML; "none" for nothing."""
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, (tuple, list)):
        return code(f"[{', '.join(_plain(item) for item in value)}]") if value else "none"
    if value is None or value == "":
        return "none"
    return code(_plain(value))


def type_text(info: FieldInfo) -> str:
    """Its values, or what kind of value it is."""
    return _type(info.annotation)


def limits_text(info: FieldInfo) -> str:
    """Bounds of the value, such as "1 to 64" or "> 0"; or the values that it may have."""
    kind = info.annotation
    if _values(kind):
        return " ".join(code(str(value)) for value in _values(kind))
    low = high = ""
    count = ""
    for rule in info.metadata:
        if isinstance(rule, annotated_types.Ge):
            low = f"≥ {_plain(rule.ge)}"
        elif isinstance(rule, annotated_types.Gt):
            low = f"> {_plain(rule.gt)}"
        elif isinstance(rule, annotated_types.Le):
            high = f"≤ {_plain(rule.le)}"
        elif isinstance(rule, annotated_types.Lt):
            high = f"< {_plain(rule.lt)}"
        elif isinstance(rule, annotated_types.MaxLen):
            count = f"at most {rule.max_length} values"
    return ", ".join(part for part in (low, high, count) if part)


def _type(kind: Any) -> str:
    if kind is None:
        return ""
    values = _values(kind)
    if values:
        return " ".join(code(str(value)) for value in values)
    origin = typing.get_origin(kind)
    if origin in (tuple, list):
        return f"list of {_type(typing.get_args(kind)[0])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.__name__
    return _NAMES.get(kind, "text")


def _values(kind: Any) -> tuple[object, ...]:
    """Of a Literal, also inside a union or a tuple."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        return typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        found = [_values(part) for part in typing.get_args(kind) if part is not type(None)]
        return tuple(value for part in found for value in part if value)
    return ()


def _plain(value: object) -> str:
    if isinstance(value, float):
        if value == float("inf"):
            return "infinity"
        return f"{value:g}" if value != int(value) or abs(value) >= 1e7 else str(int(value))
    return str(value)
