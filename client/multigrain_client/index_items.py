"""Items, filters and hits of an index as plain Python values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypedDict

from multigrain.v1 import index_pb2
from multigrain.v1.common_pb2 import ErrorKind
from multigrain.v1.embedding_pb2 import ItemStatus, Vector
from multigrain_client.errors import FieldViolation, ImageError, NotFound
from multigrain_client.images import FloatArray, decode_vector
from multigrain_client.json_format import enum_name, invalid

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Value = str | int | float | bool
#: One value, several of which one must be there, or the two ends of a range (None = open).
Condition = Value | Sequence[Value] | tuple[Value | None, Value | None]

_FIELD_TYPES = {
    str: index_pb2.FIELD_TYPE_STRING,
    int: index_pb2.FIELD_TYPE_INT,
    float: index_pb2.FIELD_TYPE_FLOAT,
    bool: index_pb2.FIELD_TYPE_BOOL,
}


class SearchKeywords(TypedDict, total=False):
    """Options of a search.

    Attributes:
        k: hits for each query, 1..1000; default 10.
        label: only items with this label, or with one of these.
        tag: only items with this tag, or with one of these.
        path_prefix: only items whose path begins so.
        where: only items whose attributes have these values: one, a list of alternatives, or a
            pair (least, most) with None for an open end: ``{"year": (2020, None)}``.
        min_similarity: leaves out hits that are less similar.
        effort: "fast", "balanced" (default) or "exact".
        with_vectors: also return the vectors of the hits.
    """

    k: int
    label: str | Sequence[str]
    tag: str | Sequence[str]
    path_prefix: str
    where: Mapping[str, Condition]
    min_similarity: float
    effort: str
    with_vectors: bool


@dataclass(frozen=True)
class IndexItem:
    """An item of an index.

    Attributes:
        id: chosen by the caller.
        path: of the image's file, as the caller gave it.
        labels, tags: of the image.
        attributes: values of the index's fields.
        sha256: of the image's file, in hex; "" if unknown.
        added: when it was added, or its vector last replaced.
        vector: float32 (C,) if it was asked for.
    """

    id: str
    path: str = ""
    labels: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    attributes: Mapping[str, Value] = field(default_factory=dict)
    sha256: str = ""
    added: datetime | None = None
    vector: FloatArray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Hit:
    """An item that a search found.

    Attributes:
        item: the item.
        similarity: cosine of the angle between its vector and the query's, -1 to 1.
    """

    item: IndexItem
    similarity: float

    @property
    def id(self) -> str:
        """Of the item."""
        return self.item.id


class Hits(list[Hit]):
    """The hits of one query, the most similar first; a table in a notebook."""

    def _repr_html_(self) -> str:
        from multigrain_client.notebook import hits_html

        return hits_html(self)


def field_messages(fields: Mapping[str, type]) -> list[index_pb2.Field]:
    """The fields of an index from names and Python types.

    Raises:
        InvalidRequest: for another type than str, int, float and bool.
    """
    messages = []
    for name, kind in fields.items():
        if kind not in _FIELD_TYPES:
            raise invalid([FieldViolation(f"fields[{name}]", "must be str, int, float or bool")])
        messages.append(index_pb2.Field(name=name, type=_FIELD_TYPES[kind]))
    return messages


def engine_number(engine: str) -> index_pb2.IndexEngine.ValueType:
    """The number of an engine; empty = the server chooses.

    Raises:
        InvalidRequest: for an unknown name.
    """
    engines = {"": "UNSPECIFIED", "exact": "EXACT", "lancedb": "LANCEDB"}
    if engine not in engines:
        raise invalid([FieldViolation("engine", "choose exact or lancedb")])
    return index_pb2.IndexEngine.Value(f"INDEX_ENGINE_{engines[engine]}")


def value_message(value: Value, place: str = "where") -> index_pb2.Value:
    """A value of an attribute.

    Raises:
        InvalidRequest: for another type.
    """
    if isinstance(value, bool):
        return index_pb2.Value(bool_value=value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return index_pb2.Value(int_value=value)
    if isinstance(value, float):
        return index_pb2.Value(float_value=value)
    if isinstance(value, str):
        return index_pb2.Value(string_value=value)
    raise invalid([FieldViolation(place, f"{value!r} is not a str, int, float or bool")])


def item_message(
    id: str,
    path: str = "",
    labels: Sequence[str] = (),
    tags: Sequence[str] = (),
    attributes: Mapping[str, Value] | None = None,
) -> index_pb2.Item:
    """An item to add."""
    return index_pb2.Item(
        id=id,
        path=path,
        labels=labels,
        tags=tags,
        attributes={
            name: value_message(value, f"attributes[{name}]")
            for name, value in (attributes or {}).items()
        },
    )


def filter_message(
    label: str | Sequence[str] = (),
    tag: str | Sequence[str] = (),
    path_prefix: str = "",
    where: Mapping[str, Condition] | None = None,
) -> index_pb2.Filter | None:
    """The filter of ``SearchKeywords``; None if it chooses all items."""
    alternatives = (
        [index_pb2.Filter(label=word) for word in _words(label)],
        [index_pb2.Filter(tag=word) for word in _words(tag)],
    )
    filters = [
        index_pb2.Filter(any=index_pb2.FilterList(filters=listed))
        for listed in alternatives
        if listed
    ]
    if path_prefix:
        filters.append(index_pb2.Filter(path_prefix=path_prefix))
    filters += [_condition(name, wanted) for name, wanted in (where or {}).items()]
    if not filters:
        return None
    return index_pb2.Filter(all=index_pb2.FilterList(filters=filters))


def search_request(index: str, keywords: Mapping[str, Any]) -> index_pb2.SearchRequest:
    """A SearchRequest without queries for ``SearchKeywords``.

    Raises:
        InvalidRequest: for a value that its field cannot hold.
        TypeError: for a keyword that is not in ``SearchKeywords``.
    """
    for name in keywords.keys() - SearchKeywords.__annotations__.keys():
        raise TypeError(f"unexpected keyword argument {name!r}")
    conditions = {"label", "tag", "path_prefix", "where"}
    chosen = filter_message(**{name: keywords[name] for name in keywords.keys() & conditions})
    effort = str(keywords.get("effort", "balanced")).upper()
    number = index_pb2.SearchEffort.DESCRIPTOR.values_by_name.get(f"SEARCH_EFFORT_{effort}")
    k = keywords.get("k", 10)
    if number is None:
        raise invalid([FieldViolation("effort", "choose fast, balanced or exact")])
    if not isinstance(k, int) or not 1 <= k <= 1000:
        raise invalid([FieldViolation("k", "must be 1 to 1000")])
    request = index_pb2.SearchRequest(
        index=index, k=k, filter=chosen, with_vectors=bool(keywords.get("with_vectors"))
    )
    request.effort = number.number  # type: ignore[assignment]
    if "min_similarity" in keywords:
        request.min_similarity = keywords["min_similarity"]
    return request


def vector_message(vector: FloatArray) -> Vector:
    """A float32 vector."""
    return Vector(size=len(vector), data=vector.astype("<f4").tobytes())


def item_of(message: index_pb2.Item) -> IndexItem:
    """An item of an answer."""
    return IndexItem(
        id=message.id,
        path=message.path,
        labels=tuple(message.labels),
        tags=tuple(message.tags),
        attributes={
            name: getattr(value, value.WhichOneof("kind") or "string_value")
            for name, value in message.attributes.items()
        },
        sha256=message.sha256.hex(),
        added=message.add_time.ToDatetime(tzinfo=UTC) if message.HasField("add_time") else None,
        vector=decode_vector(message.vector) if message.HasField("vector") else None,
    )


def hits_of(result: index_pb2.SearchResult) -> Hits:
    """The hits of one query."""
    return Hits(Hit(item_of(hit.item), hit.similarity) for hit in result.hits)


def status_error(index: int, name: str, status: ItemStatus) -> ImageError | None:
    """The error of one item or query; None if it has none."""
    if status.code == 0:
        return None
    kind = enum_name(ErrorKind.DESCRIPTOR, status.kind)
    return ImageError(index, name, kind, status.message or kind)


def missing_item(id: str, index: str) -> NotFound:
    """The error for an id that an index does not have."""
    return NotFound(f"index {index} has no item {id!r}", kind="NOT_FOUND")


def parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items in parts of a size."""
    return (items[start : start + size] for start in range(0, len(items), size))


def sha256_of(data: bytes) -> str:
    """The checksum of an image's file, in hex."""
    return hashlib.sha256(data).hexdigest()


def _words(words: str | Sequence[str]) -> list[str]:
    return [words] if isinstance(words, str) else list(words)


def _condition(name: str, wanted: Condition) -> index_pb2.Filter:
    place = f"where[{name}]"
    if _is_range(wanted):
        least, most = wanted
        message = index_pb2.RangeFilter(field=name)
        if least is not None:
            message.least.CopyFrom(value_message(least, place))
        if most is not None:
            message.most.CopyFrom(value_message(most, place))
        return index_pb2.Filter(range=message)
    values = [wanted] if isinstance(wanted, str | int | float) else list(wanted)
    return index_pb2.Filter(
        equals=index_pb2.EqualsFilter(
            field=name, values=[value_message(value, place) for value in values]
        )
    )


def _is_range(wanted: Condition) -> TypeIs[tuple[Value | None, Value | None]]:
    return isinstance(wanted, tuple) and len(wanted) == 2
