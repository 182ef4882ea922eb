"""Fills a request message from plain Python values, and names what does not fit.

Only names and types are checked here; ranges and what belongs together are the server's to judge.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

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
    """The request itself, or one made of ``fields``.

    Raises:
        InvalidRequest: if both are given, or a field is unknown or of a wrong type.
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
    """Sets fields of ``message``. Nested messages take mappings; enums take names with or
    without their prefix, or numbers; a value of None leaves its field alone.

    Args:
        path: of the message, for the errors ("spec").

    Raises:
        InvalidRequest: naming every unknown or ill-typed field.
    """
    violations: list[FieldViolation] = []
    _fill(message, values, path, violations)
    if violations:
        raise invalid(violations)


def invalid(violations: list[FieldViolation]) -> InvalidRequest:
    text = "; ".join(f"{violation.field}: {violation.message}" for violation in violations)
    return InvalidRequest(text, kind="INVALID_FIELD", violations=tuple(violations))


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"schedule.epochs": 3}`` -> ``{"schedule": {"epochs": 3}}``, at every level.

    Raises:
        InvalidRequest: if a key is at once a value and a group ("schedule" = 3 and
            "schedule.epochs" = 3).
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        branch: Any = nest(value) if isinstance(value, Mapping) else value
        for part in reversed(str(key).split(".")):
            branch = {part: branch}
        nested = merge(nested, branch)
    return nested


def merge(base: Mapping[str, Any], over: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """``base`` with every leaf of ``over`` put over it. Both are nested.

    Raises:
        InvalidRequest: if a group meets a value.
    """
    result = dict(base)
    for key, value in over.items():
        here = f"{path}.{key}" if path else str(key)
        old = result.get(key)
        if old is not None and isinstance(old, Mapping) != isinstance(value, Mapping):
            raise invalid([FieldViolation(here, "is given both as a value and as a group")])
        if isinstance(value, Mapping):
            result[key] = merge(old if isinstance(old, Mapping) else {}, value, here)
        else:
            result[key] = value
    return result


def _fill(
    message: Message, values: Mapping[str, Any], path: str, violations: list[FieldViolation]
) -> None:
    # The stubs cannot say which of the two implementations of a descriptor it is.
    fields = cast("Mapping[str, FieldDescriptor]", message.DESCRIPTOR.fields_by_name)
    for key, value in values.items():
        here = f"{path}.{key}" if path else str(key)
        field = fields.get(key)
        if field is None:
            violations.append(FieldViolation(here, _unknown(str(key), fields)))
        elif value is not None:
            try:
                _set(message, field, value, here, violations)
            except (TypeError, ValueError, AttributeError) as error:
                # Of a plain value the error says no more than that it is of another type.
                detail = "" if isinstance(value, (int, float, str)) else f": {error}"
                violations.append(FieldViolation(here, f"{_wanted(field)}; not {value!r}{detail}"))


def _set(
    message: Message,
    field: FieldDescriptor,
    value: Any,
    path: str,
    violations: list[FieldViolation],
) -> None:
    if _is_map(field):
        if not isinstance(value, Mapping):
            raise TypeError("it is not a mapping")
        getattr(message, field.name).update({str(k): v for k, v in value.items()})
    elif field.is_repeated:
        _extend(message, field, value, path, violations)
    elif field.message_type is not None:
        if isinstance(value, Message):
            getattr(message, field.name).CopyFrom(value)
        elif isinstance(value, Mapping):
            part: Message = getattr(message, field.name)
            # An empty group is still a group that was set.
            part.SetInParent()
            _fill(part, value, path, violations)
        else:
            raise TypeError("it is not a mapping")
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
        value = _listed(field, value)
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError("it is not a list")
    target = getattr(message, field.name)
    for index, item in enumerate(value):
        if field.message_type is None:
            target.append(_scalar(field, item))
        elif isinstance(item, Mapping):
            _fill(target.add(), item, f"{path}[{index}]", violations)
        else:
            target.add().CopyFrom(item)


def _listed(field: FieldDescriptor, value: Any) -> Any:
    """As a command line gives a list: "holidays,ukb", "2,3.5", or one number alone."""
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
        raise TypeError("it is true or false")
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL and not isinstance(value, bool):
        raise TypeError("write true or false")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str) and field.cpp_type in _FLOATS:
        # "inf" on a command line; "1e-4" from a YAML 1.1 file, where it is a text.
        return float(value)
    return value


def _enum_number(enum: EnumDescriptor, name: str) -> int:
    known = enum_names(enum)
    short = name.upper().replace("-", "_").removeprefix(_prefix(enum))
    if short not in known:
        raise ValueError(f"choose one of {', '.join(known)}")
    return known[short]


def enum_names(enum: EnumDescriptor) -> dict[str, int]:
    """Values of an enum by name without its prefix ("RUNNING"), UNSPECIFIED left out."""
    prefix = _prefix(enum)
    return {value.name.removeprefix(prefix): value.number for value in enum.values if value.number}


def enum_name(enum: EnumDescriptor, number: int) -> str:
    """Name without prefix ("RUNNING"); the number in digits if a newer server sent it."""
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(_prefix(enum))


def _prefix(enum: EnumDescriptor) -> str:
    """buf's rule: values carry the enum's name; the zero value shows how it is spelt."""
    return enum.values[0].name.removesuffix("UNSPECIFIED")


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _unknown(key: str, fields: Mapping[str, FieldDescriptor]) -> str:
    near = difflib.get_close_matches(key, list(fields), n=1)
    if near:
        return f"no such field; did you mean {near[0]!r}?"
    return f"no such field; there are {', '.join(sorted(fields))}"


def _wanted(field: FieldDescriptor) -> str:
    if _is_map(field):
        noun = "a mapping"
    elif field.message_type is not None:
        noun = "a group of fields"
    elif field.enum_type is not None:
        noun = "a name"
    else:
        noun = {
            FieldDescriptor.CPPTYPE_BOOL: "true or false",
            FieldDescriptor.CPPTYPE_DOUBLE: "a number",
            FieldDescriptor.CPPTYPE_FLOAT: "a number",
            FieldDescriptor.CPPTYPE_STRING: "a text",
            FieldDescriptor.CPPTYPE_UINT32: "a whole number, 0 or more",
            FieldDescriptor.CPPTYPE_UINT64: "a whole number, 0 or more",
        }.get(field.cpp_type, "a whole number")
    return (
        f"must be a list, each {noun}"
        if field.is_repeated and not _is_map(field)
        else f"must be {noun}"
    )
