"""The two messages that every image costs, in binary: JSON would take longer than their work."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from multigrain.errors import ErrorKind
from multigrain.specs.base import Spec

Dtype = Literal["fp32", "fp16", "int8"]
Where = Literal["", "queue", "batch"]

_DTYPES: Final[tuple[Dtype, ...]] = get_args(Dtype)
_WHERE: Final[tuple[Where, ...]] = get_args(Where)


class VectorWants(Spec):
    """How an embedding is wanted: whitened or not, then L2-normalised or not, and its dtype."""

    normalize: bool = True
    dtype: Dtype = "fp32"
    whiten: bool = False


#: Every way a vector can be wanted; place 0 is "not at all".
_WANTS: Final[tuple[VectorWants | None, ...]] = (
    None,
    *(
        VectorWants(normalize=normalize, dtype=dtype, whiten=whiten)
        for normalize in (False, True)
        for dtype in _DTYPES
        for whiten in (False, True)
    ),
)


def _place(wants: VectorWants | None) -> int:
    """In ``_WANTS``."""
    if wants is None:
        return 0
    return 1 + 6 * wants.normalize + 2 * _DTYPES.index(wants.dtype) + wants.whiten


@dataclass(slots=True)
class Submit:
    """One image; the payload is its encoded bytes. Answered by exactly one :class:`Result`.

    ``caller`` says which images are one caller's: engines are fair between callers.
    ``resolution`` 0 = the bundle's default. ``deadline_ns`` is on CLOCK_MONOTONIC, which all
    processes of a host share; 0 = none. ``top_k`` 0 = no top classes; ``scores``: the
    probabilities of all of them. With ``tensor`` the payload is what preprocessing makes of a
    file: little-endian float32 (3, resolution, resolution).
    """

    FORM: ClassVar[struct.Struct] = struct.Struct("<cqqqIIB??")
    TAG: ClassVar[bytes] = b"S"

    id: int
    caller: int = 0
    resolution: int = 0
    deadline_ns: int = 0
    vector: VectorWants | None = None
    top_k: int = 0
    scores: bool = False
    tensor: bool = False

    def pack(self) -> bytes:
        return self.FORM.pack(
            self.TAG,
            self.id,
            self.caller,
            self.deadline_ns,
            self.resolution,
            self.top_k,
            _place(self.vector),
            self.scores,
            self.tensor,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Submit:
        """Raises ValueError, IndexError or struct.error for what is no such message."""
        _, number, caller, deadline, resolution, top_k, wants, scores, tensor = cls.FORM.unpack(
            data
        )
        return cls(
            number, caller, resolution, deadline, _WANTS[wants], top_k, bool(scores), bool(tensor)
        )


@dataclass(slots=True)
class Result:
    """The answer for one image. ``kind`` 0 = OK, else an ``ErrorKind``.

    The payload is the vector (``vector_bytes``), then ``classes`` int32 class ids, then as
    many float32 probabilities, most probable first, then ``scores`` float32 probabilities in
    the order of the classes. ``leads_batch`` is set on one result of
    each batch, so that a reader can count batches. ``where`` tells how far an image came that
    was cancelled or timed out: "queue" or "batch".
    """

    FORM: ClassVar[struct.Struct] = struct.Struct("<cqIBqqqI?IdII")
    TAG: ClassVar[bytes] = b"R"

    id: int
    kind: int = 0
    message: str = ""
    where: Where = ""
    decode_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    batch_items: int = 0
    leads_batch: bool = False
    vector_bytes: int = 0
    scale: float = 0.0
    classes: int = 0
    scores: int = 0

    @property
    def error_kind(self) -> ErrorKind | None:
        return ErrorKind(self.kind) if self.kind else None

    def pack(self) -> bytes:
        numbers = self.FORM.pack(
            self.TAG,
            self.id,
            self.kind,
            _WHERE.index(self.where),
            self.decode_ns,
            self.queue_ns,
            self.compute_ns,
            self.batch_items,
            self.leads_batch,
            self.vector_bytes,
            self.scale,
            self.classes,
            self.scores,
        )
        return numbers + self.message.encode() if self.message else numbers

    @classmethod
    def unpack(cls, data: bytes) -> Result:
        """Raises ValueError, IndexError or struct.error for what is no such message."""
        _, number, kind, where, *rest = cls.FORM.unpack_from(data)
        if kind:
            ErrorKind(kind)
        return cls(number, kind, data[cls.FORM.size :].decode(), _WHERE[where], *rest)


# MERGED: Messages between the daemon and an engine: framed, typed, bounded, and never pickled.
# A frame is ``<header length: u32><payload length: u32><header><payload: raw bytes>``, little-
# endian; the header is JSON, or binary for what every image costs. Both sides refuse a frame
# that is larger than they agreed to and close the socket on anything they do not understand:
# both ends are the same release.


MAX_HEADER = 64 * 1024
_PREFIX = struct.Struct("<II")

__all__ = [
    "MAX_HEADER",
    "Cancel",
    "Dtype",
    "Frame",
    "FrameParser",
    "Hold",
    "LoadFailed",
    "Message",
    "Ready",
    "Result",
    "Submit",
    "VectorWants",
    "WireError",
    "encode",
]


class WireError(Exception):
    """The other side sent what this protocol does not allow; the connection is lost."""


class Cancel(Spec):
    """The caller of image ``id`` has gone; answered by its :class:`Result` all the same."""

    type: Literal["cancel"] = "cancel"
    id: int


class Hold(Spec):
    """For tests: keep batches back until ``items`` images are decoded; 0 lets go at once."""

    type: Literal["hold"] = "hold"
    items: int = Field(ge=0)


class Ready(Spec):
    """The model answers. Sent once, before any result.

    ``precision`` is what it computes in, see ``multigrain.bundle.reference``;
    ``images_per_second`` is what its batches reached while it was warmed up; with
    ``busy_items`` images in work it is busy all the time.
    """

    type: Literal["ready"] = "ready"
    runtime: str
    reason: str
    precision: str = "f32"
    resolutions: tuple[int, ...]
    embedding_size: int
    classes: int
    max_batch: int
    load_seconds: float
    images_per_second: float = 0.0
    busy_items: int = 16


class LoadFailed(Spec):
    """The bundle cannot be served; the engine exits after it."""

    type: Literal["load_failed"] = "load_failed"
    kind: int
    message: str


Cold = Cancel | Hold | Ready | LoadFailed
Message = Submit | Result | Cold
_COLD: TypeAdapter[Cold] = TypeAdapter(Annotated[Cold, Field(discriminator="type")])


@dataclass(frozen=True, slots=True)
class Frame:
    """A message and its payload."""

    message: Message
    payload: bytes = b""


def encode(message: Message, payload_size: int = 0) -> bytes:
    """Prefix and header of a frame; ``payload_size`` raw bytes must follow it."""
    if isinstance(message, Submit | Result):
        header = message.pack()
    else:
        header = message.model_dump_json().encode()
    return _PREFIX.pack(len(header), payload_size) + header


class FrameParser:
    """Turns a byte stream into frames, whatever pieces it comes in.

    Args:
        max_payload: bytes; a frame that announces more raises :class:`WireError` at once,
            before anything is kept.
    """

    def __init__(self, max_payload: int) -> None:
        self._max_payload = max_payload
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yields the frames that ``data`` completes. Raises WireError."""
        self._buffer += data
        position = 0
        try:
            while len(self._buffer) - position >= _PREFIX.size:
                header_size, payload_size = _PREFIX.unpack_from(self._buffer, position)
                if not 0 < header_size <= MAX_HEADER or payload_size > self._max_payload:
                    raise WireError(f"frame of {header_size} + {payload_size} bytes refused")
                start = position + _PREFIX.size
                end = start + header_size + payload_size
                if len(self._buffer) < end:
                    break
                with memoryview(self._buffer) as view:
                    header = bytes(view[start : start + header_size])
                    payload = bytes(view[start + header_size : end])
                position = end
                yield Frame(_parse(header), payload)
        finally:
            # One move of the rest for all frames of a read, not one for each.
            del self._buffer[:position]


def _parse(header: bytes) -> Message:
    """Raises WireError."""
    try:
        match header[:1]:
            case Submit.TAG:
                return Submit.unpack(header)
            case Result.TAG:
                return Result.unpack(header)
        return _COLD.validate_json(header)
    except ValidationError as error:
        raise WireError(f"unknown message: {error.errors()[0]['msg']}") from None
    except (ValueError, IndexError, struct.error) as error:
        raise WireError(f"damaged message: {error}") from None


# MERGED: The engine's end of the socket.


_READ = 256 * 1024


class Connection:
    """Blocking frames over a stream socket; any thread may send.

    Args:
        max_payload: bytes of a payload that is accepted.
    """

    def __init__(self, sock: socket.socket, max_payload: int) -> None:
        self._socket = sock
        self._parser = FrameParser(max_payload)
        self._send_lock = threading.Lock()

    def frames(self) -> Iterator[Frame]:
        """Every frame until the other side closes. Raises WireError."""
        while True:
            try:
                data = self._socket.recv(_READ)
            except ConnectionError:
                return
            if not data:
                return
            yield from self._parser.feed(data)

    def send(self, message: Message, payload: bytes = b"") -> None:
        self.send_all([Frame(message, payload)])

    def send_all(self, frames: Sequence[Frame]) -> None:
        """Sends frames in one write; a peer that has gone is noticed by the reader instead."""
        data = b"".join(
            part
            for frame in frames
            for part in (encode(frame.message, len(frame.payload)), frame.payload)
        )
        with self._send_lock:
            try:
                self._socket.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                return
