"""Messages of the IndexService, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from multigrain.errors import MultigrainError
from multigrain.index import filters, items
from multigrain.index.filters import MAX_FILTER_DEPTH, MAX_FILTER_NODES, Filter
from multigrain.index.items import Changes, Field, FieldType, Item, Value
from multigrain.index.manifest import Engine
from multigrain.index.store import Effort
from multigrain.v1 import embedding_pb2, index_pb2
from multigrain_server.indexes.service import Hit, IndexView, NewItem, Query

if TYPE_CHECKING:
    from multigrain_server.indexes.service import Vectors

T = TypeVar("T")

_TYPES: dict[index_pb2.FieldType.ValueType, FieldType] = {
    index_pb2.FIELD_TYPE_STRING: "string",
    index_pb2.FIELD_TYPE_INT: "int",
    index_pb2.FIELD_TYPE_FLOAT: "float",
    index_pb2.FIELD_TYPE_BOOL: "bool",
}
_TYPE_NUMBERS = {name: number for number, name in _TYPES.items()}
_ENGINES: dict[index_pb2.IndexEngine.ValueType, Engine | None] = {
    index_pb2.INDEX_ENGINE_UNSPECIFIED: None,
    index_pb2.INDEX_ENGINE_EXACT: "exact",
    index_pb2.INDEX_ENGINE_LANCEDB: "lancedb",
}
_ENGINE_NUMBERS = {name: number for number, name in _ENGINES.items() if name is not None}
_EFFORTS: dict[index_pb2.SearchEffort.ValueType, Effort] = {
    index_pb2.SEARCH_EFFORT_UNSPECIFIED: "balanced",
    index_pb2.SEARCH_EFFORT_FAST: "fast",
    index_pb2.SEARCH_EFFORT_BALANCED: "balanced",
    index_pb2.SEARCH_EFFORT_EXACT: "exact",
}
_FLOATS: dict[int, str] = {
    embedding_pb2.DTYPE_UNSPECIFIED: "<f4",
    embedding_pb2.DTYPE_FP32: "<f4",
    embedding_pb2.DTYPE_FP16: "<f2",
}
_BYTES_OF_SHA256 = 32


def engine_of(number: index_pb2.IndexEngine.ValueType) -> Engine | None:
    """The engine of a request; None lets the server choose. Raises INVALID_FIELD."""
    if number not in _ENGINES:
        raise MultigrainError.field("engine", f"{number} is unknown to this server")
    return _ENGINES[number]


def effort_of(number: index_pb2.SearchEffort.ValueType) -> Effort:
    """The effort of a search. Raises INVALID_FIELD."""
    if number not in _EFFORTS:
        raise MultigrainError.field("effort", f"{number} is unknown to this server")
    return _EFFORTS[number]


def fields_of(messages: Sequence[index_pb2.Field]) -> list[Field]:
    """The fields of an index to create. Raises INVALID_FIELD."""
    fields = []
    for number, message in enumerate(messages):
        if message.type not in _TYPES:
            raise MultigrainError.field(f"fields[{number}].type", "is missing or unknown")
        fields.append(Field(message.name, _TYPES[message.type]))
    return fields


def new_item(message: index_pb2.NewItem, place: str) -> NewItem:
    """An item to add. Raises INVALID_FIELD; items are checked against their index later."""
    source = message.WhichOneof("source")
    item = message.item
    if item.sha256 and len(item.sha256) != _BYTES_OF_SHA256:
        raise MultigrainError.field(f"{place}.item.sha256", "must be 32 bytes")
    return NewItem(
        _converted(
            {
                "id": item.id,
                "sha256": item.sha256.hex(),
                "path": item.path,
                "labels": tuple(item.labels),
                "tags": tuple(item.tags),
                "attributes": attributes_of(item.attributes, f"{place}.item.attributes"),
            },
            Item,
            f"{place}.item",
        ),
        image=message.image if source == "image" else None,
        vector=vector_of(message.vector, f"{place}.vector") if source == "vector" else None,
    )


def changes_of(message: index_pb2.ItemChanges, place: str) -> Changes:
    """Changes of an item. Raises INVALID_FIELD."""
    attributes: dict[str, Value | None] = dict.fromkeys(message.remove_attributes)
    attributes.update(attributes_of(message.attributes, f"{place}.attributes"))
    return _converted(
        {
            "id": message.id,
            "path": message.path if message.HasField("path") else None,
            "labels": tuple(message.labels.values) if message.HasField("labels") else None,
            "tags": tuple(message.tags.values) if message.HasField("tags") else None,
            "attributes": attributes,
        },
        Changes,
        place,
    )


def query_of(message: index_pb2.Query, place: str) -> Query:
    """What to search for. Raises INVALID_FIELD."""
    match message.WhichOneof("by"):
        case "image":
            return Query(image=message.image)
        case "vector":
            return Query(vector=vector_of(message.vector, f"{place}.vector"))
        case "id":
            return Query(id=message.id)
        case _:
            return Query()


def vector_of(message: embedding_pb2.Vector, place: str) -> Vectors:
    """The numbers of a vector. Raises INVALID_FIELD."""
    import numpy as np

    if message.values:
        return np.array(message.values, np.float32)
    if message.dtype not in _FLOATS:
        raise MultigrainError.field(f"{place}.dtype", "must be FP32 or FP16")
    kind = np.dtype(_FLOATS[message.dtype])
    if not message.data or len(message.data) % kind.itemsize:
        raise MultigrainError.field(
            f"{place}.data", f"must hold numbers of {kind.itemsize} bytes each"
        )
    return np.frombuffer(message.data, kind).astype(np.float32)


def attributes_of(values: Mapping[str, index_pb2.Value], place: str) -> dict[str, Value]:
    """The values of attributes. Raises INVALID_FIELD."""
    return {name: _value(value, f"{place}[{name!r}]") for name, value in values.items()}


def filter_of(message: index_pb2.Filter, place: str = "filter") -> Filter:
    """A filter. Raises INVALID_FIELD."""
    return _FilterReader().read(message, place, 1)


class _FilterReader:
    """Reads filters up to the limit of their parts."""

    def __init__(self) -> None:
        self._parts = 0

    def read(self, message: index_pb2.Filter, place: str, depth: int) -> Filter:
        self._parts += 1
        if depth > MAX_FILTER_DEPTH or self._parts > MAX_FILTER_NODES:
            raise MultigrainError.field(
                "filter", f"has more than {MAX_FILTER_DEPTH} levels or {MAX_FILTER_NODES} parts"
            )
        kind = message.WhichOneof("kind")
        match kind:
            case "all" | "any":
                parts = tuple(
                    self.read(part, f"{place}.{kind}.filters[{number}]", depth + 1)
                    for number, part in enumerate(getattr(message, kind).filters)
                )
                return filters.All(parts) if kind == "all" else filters.Any(parts)
            case "not":
                # A keyword of Python.
                return filters.Not(self.read(getattr(message, "not"), f"{place}.not", depth + 1))
            case "label":
                return _converted({"label": message.label}, filters.Label, place)
            case "tag":
                return _converted({"tag": message.tag}, filters.Tag, place)
            case "path_prefix":
                return _converted({"prefix": message.path_prefix}, filters.PathPrefix, place)
            case "ids":
                return _converted({"ids": tuple(message.ids.values)}, filters.Ids, place)
            case "equals":
                values = tuple(
                    _value(value, f"{place}.equals.values[{number}]")
                    for number, value in enumerate(message.equals.values)
                )
                return filters.Equals(message.equals.field, values)
            case "range":
                given = message.range
                return filters.Range(
                    given.field,
                    _value(given.least, f"{place}.range.least")
                    if given.HasField("least")
                    else None,
                    _value(given.most, f"{place}.range.most") if given.HasField("most") else None,
                )
            case _:
                raise MultigrainError.field(place, "is empty: an empty `all` chooses all items")


def index_message(view: IndexView) -> index_pb2.Index:
    """An index as a message."""
    message = index_pb2.Index(name=view.name, aliases=view.aliases, problem=view.problem)
    if view.opened is None:
        return message
    manifest = view.opened.manifest
    origin = manifest.origin
    message.MergeFrom(
        index_pb2.Index(
            model=origin.model,
            bundle_sha256=bytes.fromhex(origin.bundle),
            resolution=origin.resolution,
            whiten=origin.whiten,
            precision=origin.precision,
            size=manifest.size,
            fields=[
                index_pb2.Field(name=field.name, type=_TYPE_NUMBERS[field.type])
                for field in manifest.fields
            ],
            engine=_ENGINE_NUMBERS[manifest.engine],
            items=view.opened.items,
            version=view.opened.version,
            create_time=_timestamp(manifest.created),
            recall=view.opened.recall,
        )
    )
    return message


def item_message(item: Item, vector: Vectors | None = None) -> index_pb2.Item:
    """An item as a message."""
    message = index_pb2.Item(
        id=item.id,
        sha256=bytes.fromhex(item.sha256),
        path=item.path,
        labels=item.labels,
        tags=item.tags,
        attributes={name: _value_message(value) for name, value in item.attributes.items()},
        add_time=_timestamp(item.added),
    )
    if vector is not None:
        message.vector.size = len(vector)
        message.vector.dtype = embedding_pb2.DTYPE_FP32
        message.vector.data = vector.astype("<f4").tobytes()
    return message


def hit_message(hit: Hit) -> index_pb2.Hit:
    """A hit as a message."""
    return index_pb2.Hit(item=item_message(hit.item, hit.vector), similarity=hit.similarity)


def _value(message: index_pb2.Value, place: str) -> Value:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise MultigrainError.field(place, "is empty")
    value: Value = getattr(message, kind)
    if isinstance(value, str) and len(value) > items.MAX_TEXT:
        raise MultigrainError.field(place, f"has more than {items.MAX_TEXT} characters")
    return value


def _value_message(value: Value) -> index_pb2.Value:
    if isinstance(value, bool):
        return index_pb2.Value(bool_value=value)
    if isinstance(value, int):
        return index_pb2.Value(int_value=value)
    if isinstance(value, float):
        return index_pb2.Value(float_value=value)
    return index_pb2.Value(string_value=value)


def _timestamp(seconds: float) -> Timestamp:
    message = Timestamp()
    message.FromMicroseconds(int(seconds * 1e6))
    return message


def _converted(values: dict[str, object], kind: type[T], place: str) -> T:
    """Values of a message, with the limits of their type checked."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise MultigrainError.field(place, str(error)) from None
