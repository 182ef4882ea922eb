"""Messages between the daemon and an engine: framed, typed, bounded, and never pickled.

A frame is ``<header length: u32><payload length: u32><header: JSON><payload: raw bytes>``,
little-endian. Both sides refuse a frame that is larger than they agreed to and close the
socket on anything they do not understand: both ends are the same release.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from multigrain.errors import ErrorKind
from multigrain.spec.base import Spec

MAX_HEADER = 64 * 1024
_PREFIX = struct.Struct("<II")

Dtype = Literal["fp32", "fp16", "int8"]


class WireError(Exception):
    """The other side sent what this protocol does not allow; the connection is lost."""


class VectorWants(Spec):
    """How an embedding is wanted: whitened or not, then L2-normalised or not, and its dtype."""

    normalize: bool = True
    dtype: Dtype = "fp32"
    whiten: bool = False


class Submit(Spec):
    """One image; the payload is its encoded bytes. Answered by exactly one :class:`Result`.

    ``resolution`` 0 = the bundle's default. ``deadline_ns`` is on CLOCK_MONOTONIC, which all
    processes of a host share; 0 = none. ``top_k`` 0 = no top classes; ``scores``: the
    probabilities of all of them. With ``tensor`` the payload is what preprocessing makes of a
    file: little-endian float32 (3, resolution, resolution).
    """

    type: Literal["submit"] = "submit"
    id: int
    resolution: int = 0
    deadline_ns: int = 0
    vector: VectorWants | None = None
    top_k: int = 0
    scores: bool = False
    tensor: bool = False


class Cancel(Spec):
    """The caller of image ``id`` has gone; answered by its :class:`Result` all the same."""

    type: Literal["cancel"] = "cancel"
    id: int


class Hold(Spec):
    """For tests: keep batches back until ``items`` images are decoded; 0 lets go at once."""

    type: Literal["hold"] = "hold"
    items: int = Field(ge=0)


class Ready(Spec):
    """The model answers. Sent once, before any result."""

    type: Literal["ready"] = "ready"
    runtime: str
    reason: str
    resolutions: tuple[int, ...]
    embedding_size: int
    classes: int
    max_batch: int
    load_seconds: float


class LoadFailed(Spec):
    """The bundle cannot be served; the engine exits after it."""

    type: Literal["load_failed"] = "load_failed"
    kind: int
    message: str


class Result(Spec):
    """The answer for one image. ``kind`` 0 = OK, else an ``ErrorKind``.

    The payload is the vector (``vector_bytes``), then ``classes`` int32 class ids, then as
    many float32 probabilities, most probable first, then ``scores`` float32 probabilities in
    the order of the classes. ``leads_batch`` is set on one result of
    each batch, so that a reader can count batches. ``where`` tells how far an image came that
    was cancelled or timed out: "queue" or "batch".
    """

    type: Literal["result"] = "result"
    id: int
    kind: int = 0
    message: str = ""
    where: Literal["", "queue", "batch"] = ""
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


Message = Submit | Cancel | Hold | Ready | LoadFailed | Result
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


@dataclass(frozen=True, slots=True)
class Frame:
    """A message and its payload."""

    message: Message
    payload: bytes = b""


def encode(message: Message, payload_size: int = 0) -> bytes:
    """Prefix and header of a frame; ``payload_size`` raw bytes must follow it."""
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
                try:
                    message = _MESSAGE.validate_json(header)
                except ValidationError as error:
                    raise WireError(f"unknown message: {error.errors()[0]['msg']}") from None
                yield Frame(message, payload)
        finally:
            # One move of the rest for all frames of a read, not one for each.
            del self._buffer[:position]
