"""Converts protobuf messages from plain Python values (``fill``) and to them (``to_plain``).

``fill`` checks names and types only; ranges and combinations are checked by the server.

Unlike protobuf's own ``json_format``, errors name the field and what it accepts, and the output
has the spelling of ``events.jsonl``: fields keep their names, 64-bit integers stay numbers, enum
names lose their prefix, and empty fields are included (except unset messages).
"""

from __future__ import annotations

import base64
import difflib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from multigrain.text import is_text, printable
from multigrain_client.errors import FieldViolation, InvalidRequest

M = TypeVar("M", bound=Message)

_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_INTEGERS = (
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
)


def build(message_type: type[M], request: M | None, fields: Mapping[str, Any]) -> M:
    """The request itself, or a request built from ``fields``.

    Raises:
        InvalidRequest: if both are given, or a field is unknown or has a wrong type.
    """
    if request is not None:
        if fields:
            raise InvalidRequest(
                f"give a {message_type.__name__} or its fields ({', '.join(fields)}), not both"
            )
        if not isinstance(request, message_type):
            raise InvalidRequest(
                f"expected a {message_type.__name__}, not {type(request).__name__}"
            )
        return request
    message = message_type()
    fill(message, fields)
    return message


def fill(message: Message, values: Mapping[str, Any], path: str = "") -> None:
    """Sets fields of ``message`` from plain values.

    Args:
        values: mappings for nested messages; names (with or without prefix) or numbers for enums;
            None leaves a field unset.
        path: prefix of the field paths in errors ("spec").

    Raises:
        InvalidRequest: naming every field that is unknown or has a wrong type.
    """
    violations: list[FieldViolation] = []
    _fill(message, values, path, violations)
    if violations:
        raise invalid(violations)


def invalid(violations: list[FieldViolation]) -> InvalidRequest:
    """The error that names these fields."""
    text = "; ".join(f"{violation.field}: {violation.message}" for violation in violations)
    return InvalidRequest(text, kind="INVALID_FIELD", violations=tuple(violations))


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"schedule.epochs": 3}`` -> ``{"schedule": {"epochs": 3}}``, at every level.

    Raises:
        InvalidRequest: if a key is both a value and a group ("schedule" = 3 and
            "schedule.epochs" = 3), or is set in both spellings.
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        branch: Any = nest(value) if isinstance(value, Mapping) else value
        for part in reversed(str(key).split(".")):
            branch = {part: branch}
        nested = merge(nested, branch, replace=False)
    return nested


def merge(
    base: Mapping[str, Any], over: Mapping[str, Any], path: str = "", *, replace: bool = True
) -> dict[str, Any]:
    """``base`` with every leaf of ``over`` replaced. Both are nested.

    Raises:
        InvalidRequest: if a key is a group in one and a value in the other; without ``replace``
            also if a value is in both.
    """
    result = dict(base)
    for key, value in over.items():
        here = f"{path}.{key}" if path else str(key)
        old = result.get(key)
        if old is not None and isinstance(old, Mapping) != isinstance(value, Mapping):
            raise invalid([FieldViolation(here, "is set both as a value and as a group")])
        if isinstance(value, Mapping):
            old = old if isinstance(old, Mapping) else {}
            result[key] = merge(old, value, here, replace=replace)
        else:
            if key in base and not replace:
                raise invalid([FieldViolation(here, "is set twice")])
            result[key] = value
    return result


def is_repeated(field: Any) -> bool:
    """Whether a field is a list or a map; protobuf 5 has no ``FieldDescriptor.is_repeated``."""
    repeated = getattr(field, "is_repeated", None)
    return bool(field.label == field.LABEL_REPEATED if repeated is None else repeated)


def _fill(
    message: Message, values: Mapping[str, Any], path: str, violations: list[FieldViolation]
) -> None:
    # The stubs leave open which of the two implementations of a descriptor it is.
    fields = cast("Mapping[str, FieldDescriptor]", message.DESCRIPTOR.fields_by_name)
    for key, value in values.items():
        here = f"{path}.{key}" if path else str(key)
        field = fields.get(key)
        if field is None:
            violations.append(FieldViolation(here, _unknown(str(key), fields)))
        elif value is not None:
            if _not_text(value) is not None:
                value = _utf8(value)
            try:
                _set(message, field, value, here, violations)
            except (TypeError, ValueError, AttributeError) as error:
                bad = _not_text(value)
                if bad is not None:
                    text = f"'{printable(bad)}' is not UTF-8 text: rename it, or correct it"
                    violations.append(FieldViolation(here, text))
                    continue
                # For a plain value the error only repeats that the type is wrong.
                detail = "" if isinstance(value, (int, float, str)) else f": {error}"
                violations.append(
                    FieldViolation(here, f"{_expected(field)}; not {value!r}{detail}")
                )


def _set(
    message: Message,
    field: FieldDescriptor,
    value: Any,
    path: str,
    violations: list[FieldViolation],
) -> None:
    if _is_map(field):
        if not isinstance(value, Mapping):
            raise TypeError("not a mapping")
        getattr(message, field.name).update({str(k): v for k, v in value.items()})
    elif is_repeated(field):
        _extend(message, field, value, path, violations)
    elif field.message_type is not None:
        if isinstance(value, Message):
            getattr(message, field.name).CopyFrom(value)
        elif isinstance(value, Mapping):
            part: Message = getattr(message, field.name)
            # An empty group counts as set.
            part.SetInParent()
            _fill(part, value, path, violations)
        else:
            raise TypeError("not a mapping")
    else:
        setattr(message, field.name, _scalar(field, value))


def _extend(
    message: Message,
    field: FieldDescriptor,
    value: Any,
    path: str,
    violations: list[FieldViolation],
) -> None:
    if field.message_type is None and not isinstance(value, bool):
        value = _as_list(field, value)
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError("not a list")
    target = getattr(message, field.name)
    for index, item in enumerate(value):
        if field.message_type is None:
            target.append(_scalar(field, item))
        elif isinstance(item, Mapping):
            _fill(target.add(), item, f"{path}[{index}]", violations)
        else:
            target.add().CopyFrom(item)


def _not_text(value: Any) -> str | None:
    """A string in the value that has no UTF-8, as of a file name or argument in other bytes."""
    if isinstance(value, str):
        return None if is_text(value) else value
    if isinstance(value, os.PathLike):
        return _not_text(os.fspath(value))
    inner: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inner = (*value.keys(), *value.values())
    elif isinstance(value, (list, tuple)):
        inner = value
    return next((bad for item in inner if (bad := _not_text(item)) is not None), None)


def _utf8(value: Any) -> Any:
    """The value with arguments and file names as text whose bytes are UTF-8, which Python does not
    decode where the locale has another encoding."""
    if isinstance(value, os.PathLike):
        return _utf8(os.fspath(value))
    if isinstance(value, str):
        try:
            return os.fsencode(value).decode("utf-8")
        except UnicodeError:
            return value
    if isinstance(value, Mapping):
        return {_utf8(key): _utf8(inner) for key, inner in value.items()}
    return [_utf8(item) for item in value] if isinstance(value, (list, tuple)) else value


def _as_list(field: FieldDescriptor, value: Any) -> Any:
    """A list as written on a command line: "holidays,ukb", "2,3.5", or a single number."""
    if isinstance(value, (int, float)):
        return [value]
    if not isinstance(value, str) or field.type == FieldDescriptor.TYPE_BYTES:
        return value
    parts = [part.strip() for part in value.split(",")]
    return [int(part) for part in parts] if field.cpp_type in _INTEGERS else parts


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None and isinstance(value, str):
        return _enum_number(field.enum_type, value)
    if isinstance(value, bool) and field.cpp_type != FieldDescriptor.CPPTYPE_BOOL:
        raise TypeError("a boolean")
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL and not isinstance(value, bool):
        raise TypeError("write true or false")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str) and field.cpp_type in _FLOATS:
        # "inf" on a command line; "1e-4" from a YAML 1.1 file, where it is a string.
        return float(value)
    return value


def _enum_number(enum: EnumDescriptor, name: str) -> int:
    known = enum_names(enum)
    short = name.upper().replace("-", "_").removeprefix(_prefix(enum))
    if short not in known:
        raise ValueError(f"no {name!r}")
    return known[short]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The fields of nested mappings as text, under dotted names; a list has commas."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            found[f"{prefix}{key}"] = text
    return found


def enum_names(enum: EnumDescriptor) -> dict[str, int]:
    """Values of an enum by name without prefix ("RUNNING"), without UNSPECIFIED."""
    prefix = _prefix(enum)
    return {value.name.removeprefix(prefix): value.number for value in enum.values if value.number}


def enum_name(enum: EnumDescriptor, number: int) -> str:
    """Name without prefix ("RUNNING"); the number as a string if this client does not know it."""
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(_prefix(enum))


def _prefix(enum: EnumDescriptor) -> str:
    """Value names start with the enum's name (a rule of buf): derived from the zero value."""
    return enum.values[0].name.removesuffix("UNSPECIFIED")


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _unknown(key: str, fields: Mapping[str, FieldDescriptor]) -> str:
    near = difflib.get_close_matches(key, list(fields), n=1)
    if near:
        return f"no such field; did you mean {near[0]!r}?"
    return f"no such field; the fields are {', '.join(sorted(fields))}"


def _expected(field: FieldDescriptor) -> str:
    if _is_map(field):
        noun = "a mapping"
    elif field.message_type is not None:
        noun = "a group of fields"
    elif field.enum_type is not None:
        noun = f"one of {', '.join(enum_names(field.enum_type)).lower()}"
    else:
        noun = {
            FieldDescriptor.CPPTYPE_BOOL: "true or false",
            FieldDescriptor.CPPTYPE_DOUBLE: "a number",
            FieldDescriptor.CPPTYPE_FLOAT: "a number",
            FieldDescriptor.CPPTYPE_STRING: "a string",
            FieldDescriptor.CPPTYPE_UINT32: "a whole number, 0 or more",
            FieldDescriptor.CPPTYPE_UINT64: "a whole number, 0 or more",
        }.get(field.cpp_type, "a whole number")
    return (
        f"must be a list, each {noun}"
        if is_repeated(field) and not _is_map(field)
        else f"must be {noun}"
    )


def to_plain(message: Message) -> dict[str, Any]:
    """The message as nested dicts, lists and scalars that JSON can represent."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        field = cast("FieldDescriptor", field)
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"]
            result[field.name] = {
                key: _plain_value(inner, value[key]) for key in sorted(value, key=str)
            }
        elif is_repeated(field):
            result[field.name] = [_plain_value(field, item) for item in value]
        else:
            result[field.name] = _plain_value(field, value)
    return result


def _plain_value(field: Any, value: Any) -> Any:
    if isinstance(value, Timestamp):
        moment = value.ToDatetime(tzinfo=UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, Message):
        return to_plain(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no NaN and no infinity.
        return str(value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
        # The precision of a 32-bit float.
        return float(f"{value:.7g}")
    return value


def spec_yaml(spec: Message) -> list[str]:
    """A specification as lines of YAML that ``read_spec`` reads back."""
    return list(_yaml_lines(to_plain(spec)))


def _yaml_lines(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            if value:
                yield f"{indent}{key}:"
                yield from _yaml_lines(value, f"{indent}  ")
        elif value in ("inf", "-inf", "nan"):
            yield f"{indent}{key}: .{value}"
        else:
            # JSON is YAML, where it has no infinity.
            yield f"{indent}{key}: {json.dumps(value, ensure_ascii=False)}"
