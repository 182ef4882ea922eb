"""Messages between the daemon and an engine: framed, typed, bounded, and never pickled.

A frame is ``<header length: u32><payload length: u32><header><payload: raw bytes>``,
little-endian; the header is JSON, or binary for what every image costs. Both sides refuse a
frame that is larger than they agreed to and close the socket on anything they do not understand:
both ends are the same release.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from multigrain.engine.hot import Dtype, Result, Submit, VectorWants
from multigrain.spec.base import Spec

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

    ``precision`` is what it computes in, see ``multigrain.bundle.agreement``;
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
