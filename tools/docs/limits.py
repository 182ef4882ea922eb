"""Types, defaults and limits of pydantic fields as text."""

from __future__ import annotations

import types
import typing
from pathlib import Path
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


def entry(key: str, info: FieldInfo) -> str:
    """A cell with the key, its type and limits, and its default; narrow enough for a phone."""
    default = info.get_default(call_default_factory=True)
    if isinstance(default, Path):
        default = default.name  # relative to the working folder
    kind = ", ".join(filter(None, (_type(info.annotation), _bounds(info))))
    return f"{code(key)}\n{kind}\ndefault: {default_text(default)}"


def _bounds(info: FieldInfo) -> str:
    low = high = count = ""
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


def item_type(info: FieldInfo) -> type[BaseModel] | None:
    """Of a list of groups, the group."""
    for kind in typing.get_args(info.annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _type(kind: Any) -> str:
    if kind is None:
        return ""
    if values := [value for value in _values(kind) if value != ""]:
        return " ".join(code(str(value)) for value in values)
    origin = typing.get_origin(kind)
    if origin in (tuple, list):
        return f"list of {_type(typing.get_args(kind)[0])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.__name__
    if isinstance(kind, type) and issubclass(kind, Path):
        return "path"
    if inner := [part for part in typing.get_args(kind) if part is not type(None)]:
        return _type(inner[0])
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
        return str(int(value)) if value == int(value) and abs(value) < 1e9 else f"{value:g}"
    if isinstance(value, int) and value > 2**40 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return str(value)
