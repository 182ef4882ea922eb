"""What an index holds: items with typed attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec

FieldType = Literal["string", "int", "float", "bool"]
Value = str | int | float | bool

MAX_TEXT = 4096
"""Longest text in an item, in characters."""
MAX_LIST = 256
"""Most labels, and most tags, of an item."""
MAX_FIELDS = 64
"""Most fields of an index."""

Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
}
_SHA256 = re.compile(r"[0-9a-f]{64}|")


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A typed attribute that items of an index may have, and that filters can use."""

    name: Name
    type: FieldType


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image in an index, without its vector.

    Attributes:
        id: chosen by the caller, unique in the index.
        sha256: of the image's file, in hex; empty if unknown.
        path: of the image's file, wherever the caller keeps it; empty if there is none.
        labels: classes of the image.
        tags: anything else to filter by.
        attributes: values of the index's fields.
        added: seconds since 1970, when the item was added or its vector last replaced.
    """

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT)]
    sha256: str = ""
    path: Text = ""
    labels: tuple[Text, ...] = ()
    tags: tuple[Text, ...] = ()
    attributes: dict[str, Value] = {}
    added: float = 0.0


class Changes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Changes of an item that keep its vector; None leaves a value, and an attribute's None
    removes it."""

    id: str
    path: Text | None = None
    labels: tuple[Text, ...] | None = None
    tags: tuple[Text, ...] | None = None
    attributes: dict[str, Value | None] = {}


def check_fields(fields: Sequence[Field]) -> None:
    """Checks the fields of an index.

    Raises:
        ValueError: if there are too many, or two of a name.
    """
    if len(fields) > MAX_FIELDS:
        raise ValueError(f"{len(fields)} fields; an index has at most {MAX_FIELDS}")
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two fields have the name {name!r}")


def check_item(item: Item, fields: Mapping[str, FieldType]) -> None:
    """Checks an item against the fields of its index.

    Raises:
        ValueError: that says which value is wrong.
    """
    if _SHA256.fullmatch(item.sha256) is None:
        raise ValueError("sha256 must be 64 lowercase hexadecimal digits")
    for name, values in (("labels", item.labels), ("tags", item.tags)):
        if len(values) > MAX_LIST:
            raise ValueError(f"{len(values)} {name}; an item has at most {MAX_LIST}")
    for name, value in item.attributes.items():
        check_value(name, value, fields)


def check_value(name: str, value: Value, fields: Mapping[str, FieldType]) -> None:
    """Checks a value of a field.

    Raises:
        ValueError: if there is no such field, or the value has another type.
    """
    expected = fields.get(name)
    if expected is None:
        known = ", ".join(sorted(fields)) or "none"
        raise ValueError(f"the index has no field {name!r}; its fields: {known}")
    is_bool = isinstance(value, bool)
    if not isinstance(value, _TYPES[expected]) or is_bool != (expected == "bool"):
        raise ValueError(f"field {name!r} is of type {expected}, not {type(value).__name__}")
    if expected == "int" and not -(2**63) <= int(value) < 2**63:
        raise ValueError(f"field {name!r} has a value beyond 64 bits")
    if expected == "float" and not abs(float(value)) < float("inf"):
        raise ValueError(f"field {name!r} has a value that is not finite")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(f"field {name!r} has more than {MAX_TEXT} characters")


def changed_item(item: Item, changes: Changes) -> Item:
    """Returns an item with changes."""
    attributes = {**item.attributes, **changes.attributes}
    return msgspec.structs.replace(
        item,
        path=item.path if changes.path is None else changes.path,
        labels=item.labels if changes.labels is None else changes.labels,
        tags=item.tags if changes.tags is None else changes.tags,
        attributes={name: value for name, value in attributes.items() if value is not None},
    )
