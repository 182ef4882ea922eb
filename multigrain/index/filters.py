"""Filters that choose some items of an index."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from multigrain.index.items import FieldType, Item, Text, Value, check_value


class _Filter(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    pass


class All(_Filter, frozen=True):
    """Items that all filters choose."""

    filters: tuple[Filter, ...]


class Any(_Filter, frozen=True):
    """Items that at least one filter chooses."""

    filters: tuple[Filter, ...]


class Not(_Filter, frozen=True):
    """Items that the filter does not choose."""

    filter: Filter


class Label(_Filter, frozen=True):
    """Items with a label."""

    label: Text


class Tag(_Filter, frozen=True):
    """Items with a tag."""

    tag: Text


class PathPrefix(_Filter, frozen=True):
    """Items whose path begins with a text."""

    prefix: Text


class Ids(_Filter, frozen=True):
    """Items with one of the ids."""

    ids: tuple[Text, ...]


class Equals(_Filter, frozen=True):
    """Items whose attribute has one of the values."""

    field: str
    values: tuple[Value, ...]


class Range(_Filter, frozen=True):
    """Items whose attribute lies in a range, both ends included; None leaves an end open."""

    field: str
    least: Value | None = None
    most: Value | None = None


Filter = All | Any | Not | Label | Tag | PathPrefix | Ids | Equals | Range

MAX_FILTER_DEPTH = 16
MAX_FILTER_NODES = 1000


def check_filter(chosen: Filter, fields: Mapping[str, FieldType]) -> None:
    """Checks a filter against the fields of an index.

    Raises:
        ValueError: for unknown fields, values of another type, and filters nested too deep.
    """
    nodes = 0
    todo: list[tuple[Filter, int]] = [(chosen, 1)]
    while todo:
        node, depth = todo.pop()
        nodes += 1
        if depth > MAX_FILTER_DEPTH or nodes > MAX_FILTER_NODES:
            raise ValueError(
                f"the filter has more than {MAX_FILTER_DEPTH} levels or {MAX_FILTER_NODES} parts"
            )
        match node:
            case All(parts) | Any(parts):
                todo += [(part, depth + 1) for part in parts]
            case Not(part):
                todo.append((part, depth + 1))
            case Equals(name, values):
                for value in values:
                    check_value(name, value, fields)
            case Range(name, least, most):
                for end in (least, most):
                    if end is not None:
                        check_value(name, end, fields)
                if fields.get(name) == "bool":
                    raise ValueError(f"field {name!r} is of type bool, which has no ranges")
                if least is None and most is None:
                    raise ValueError(f"the range of field {name!r} has neither least nor most")


def matches(chosen: Filter, item: Item) -> bool:
    """Whether a filter chooses an item."""
    match chosen:
        case All(parts):
            return all(matches(part, item) for part in parts)
        case Any(parts):
            return any(matches(part, item) for part in parts)
        case Not(part):
            return not matches(part, item)
        case Label(label):
            return label in item.labels
        case Tag(tag):
            return tag in item.tags
        case PathPrefix(prefix):
            return item.path.startswith(prefix)
        case Ids(ids):
            return item.id in ids
        case Equals(field, values):
            return item.attributes.get(field) in values
        case Range(field, least, most):
            value = item.attributes.get(field)
            if value is None:
                return False
            return _at_most(least, value) and _at_most(value, most)


def _at_most(first: Value | None, second: Value | None) -> bool:
    """Whether first <= second; None is an open end. Texts compare by code points."""
    if first is None or second is None:
        return True
    if isinstance(first, str) or isinstance(second, str):
        return str(first) <= str(second)
    return first <= second
