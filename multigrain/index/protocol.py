"""What the daemon and the index process exchange over a Unix stream socket.

A frame is ``<header length: u32><payload length: u32><header><payload>``, little-endian. The header
is a MessagePack array that msgspec encodes and checks; the payload is float32 numbers: the vectors
of a request or of its answer, row after row. Every request is answered by one :class:`Answer` or
:class:`Failed` with its id, in any order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated

import msgspec

from multigrain.errors import ErrorKind
from multigrain.index.filters import Filter
from multigrain.index.items import Changes, Item
from multigrain.index.manifest import Manifest
from multigrain.index.store import Effort

MAX_HEADER = 256 << 20
MAX_PAYLOAD = 256 << 20
_PREFIX = struct.Struct("<II")
Unsigned = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class WireError(Exception):
    """The other side broke the protocol; the connection is lost."""


class _Message(msgspec.Struct, tag=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of all messages.

    Attributes:
        id: of the request.
    """

    id: Unsigned


class List(_Message):
    """Lists the indexes and aliases; answered by :class:`Listed`."""


class Create(_Message):
    """Creates an index; answered by :class:`Opened`."""

    manifest: Manifest


class Open(_Message):
    """Opens an index; answered by :class:`Opened`."""

    index: str


class DeleteIndex(_Message):
    """Deletes an index; answered by :class:`Done`."""

    index: str


class SetAlias(_Message):
    """Sets or removes an alias; answered by :class:`Done`."""

    alias: str
    index: str


class Add(_Message):
    """Adds items, whose vectors are the payload; answered by :class:`Done`."""

    index: str
    items: list[Item]


class Update(_Message):
    """Changes items; answered by :class:`Done` with the ids that there are not."""

    index: str
    changes: list[Changes]


class Delete(_Message):
    """Deletes the items that a filter chooses; answered by :class:`Done` with their number."""

    index: str
    chosen: Filter


class Count(_Message):
    """Counts the items that a filter chooses; answered by :class:`Done` with their number."""

    index: str
    chosen: Filter


class Get(_Message):
    """Reads items; answered by :class:`Items`."""

    index: str
    ids: list[str]
    with_vectors: bool = False


class Search(_Message):
    """Finds the nearest items for each query of the payload; answered by :class:`Found`."""

    index: str
    k: Unsigned
    chosen: Filter | None = None
    effort: Effort = "balanced"
    with_vectors: bool = False


class Scan(_Message):
    """Begins to read all items that a filter chooses, as they are now; answered by :class:`Done`
    with the number of the scan."""

    index: str
    chosen: Filter | None = None
    rows: Unsigned = 1000


class Next(_Message):
    """The next items of a scan; answered by :class:`Items`, which are none at the end."""

    scan: Unsigned


class EndScan(_Message):
    """Ends a scan early; answered by :class:`Done`."""

    scan: Unsigned


class Done(_Message):
    """A request was carried out.

    Attributes:
        number: how many items, or of the scan.
        ids: that there are not.
        version: of the index after a change.
    """

    number: Unsigned = 0
    ids: list[str] = []
    version: Unsigned = 0


class Listed(_Message):
    """Names of all indexes, and the indexes of aliases."""

    names: list[str]
    aliases: dict[str, str]


class Opened(_Message):
    """An open index.

    Attributes:
        manifest: of the index.
        items: number of its items.
        version: that grows with every change.
        recall: fraction of the nearest items that balanced searches find, as measured; None if
            searches compare all vectors.
    """

    manifest: Manifest
    items: Unsigned
    version: Unsigned
    recall: float | None = None


class Items(_Message):
    """Items; their vectors are the payload."""

    items: list[Item]


class Found(_Message):
    """The items that were found for each query, the most similar first; with vectors, those of all
    of them are the payload."""

    hits: list[list[tuple[Item, float]]]


class Failed(_Message):
    """A request failed."""

    kind: ErrorKind
    message: str
    field: str = ""


Request = (
    List
    | Create
    | Open
    | DeleteIndex
    | SetAlias
    | Add
    | Update
    | Delete
    | Count
    | Get
    | Search
    | Scan
    | Next
    | EndScan
)
Answer = Done | Listed | Opened | Items | Found | Failed

_ENCODER = msgspec.msgpack.Encoder()
_REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_ANSWERS: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(message: Request | Answer, payload: bytes = b"") -> bytes:
    """A frame.

    Raises:
        WireError: if it is larger than the other side accepts.
    """
    header = _ENCODER.encode(message)
    if len(header) > MAX_HEADER or len(payload) > MAX_PAYLOAD:
        raise WireError(f"frame of {len(header)} + {len(payload)} bytes is too large")
    return _PREFIX.pack(len(header), len(payload)) + header + payload


class Parser:
    """Turns a byte stream into messages and their payloads, whatever pieces it arrives in."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields the headers and payloads that ``data`` completes. Raises WireError."""
        self._buffer += data
        position = 0
        try:
            while len(self._buffer) - position >= _PREFIX.size:
                header, payload = _PREFIX.unpack_from(self._buffer, position)
                if header > MAX_HEADER or payload > MAX_PAYLOAD:
                    raise WireError(f"frame of {header} + {payload} bytes refused")
                start = position + _PREFIX.size
                end = start + header + payload
                if len(self._buffer) < end:
                    break
                with memoryview(self._buffer) as view:
                    parts = bytes(view[start : start + header]), bytes(view[start + header : end])
                position = end
                yield parts
        finally:
            del self._buffer[:position]


def decode_request(header: bytes) -> Request:
    """Raises WireError."""
    try:
        return _REQUESTS.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"not a request: {error}") from None


def decode_answer(header: bytes) -> Answer:
    """Raises WireError."""
    try:
        return _ANSWERS.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"not an answer: {error}") from None
