"""Filters as conditions of SQL, in the dialect of LanceDB (DataFusion's)."""

from __future__ import annotations

from multigrain.index.filters import (
    All,
    Any,
    Equals,
    Filter,
    Ids,
    Label,
    Not,
    PathPrefix,
    Range,
    Tag,
)
from multigrain.index.items import Value


def quote(value: Value) -> str:
    """A literal of SQL. Texts are quoted so that nothing in them is read as SQL."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)


def condition(chosen: Filter) -> str:
    """Writes a checked filter as a condition of DataFusion's SQL that is never NULL."""
    match chosen:
        case All(parts):
            return _join(" AND ", [condition(part) for part in parts], "TRUE")
        case Any(parts):
            return _join(" OR ", [condition(part) for part in parts], "FALSE")
        case Not(part):
            return f"(NOT {condition(part)})"
        case Label(label):
            return f"array_has(labels, {quote(label)})"
        case Tag(tag):
            return f"array_has(tags, {quote(tag)})"
        case PathPrefix(prefix):
            return f"starts_with(path, {quote(prefix)})"
        case Ids(ids):
            return _in("id", ids)
        case Equals(field, values):
            name = column_of(field)
            return f"({name} IS NOT NULL AND {_in(name, values)})"
        case Range(field, least, most):
            name = column_of(field)
            ends = [
                f"{name} {sign} {quote(end)}"
                for sign, end in ((">=", least), ("<=", most))
                if end is not None
            ]
            return _join(" AND ", [f"{name} IS NOT NULL", *ends], "TRUE")


def column_of(field: str) -> str:
    """The column of a field, which no other column's name can equal."""
    return f"field_{field}"


def _in(column: str, values: tuple[Value, ...]) -> str:
    listed = ", ".join(quote(value) for value in values)
    return f"({column} IN ({listed}))" if values else "FALSE"


def _join(word: str, parts: list[str], empty: str) -> str:
    return "(" + word.join(parts) + ")" if parts else empty
