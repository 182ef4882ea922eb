"""Tensors as the protocol sends them."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable

from multigrain.errors import MultigrainError

_LENGTH = struct.Struct("<I")
FLOAT_BYTES = 4


def split_bytes(raw: bytes, elements: int, field: str) -> list[bytes]:
    """The elements of a raw BYTES tensor: each after its length, a little-endian uint32.

    Args:
        raw: the tensor.
        elements: how many its shape says there are; no more are looked at.
        field: to be named in errors.

    Raises:
        MultigrainError: INVALID_FIELD if it is not exactly so many elements.
    """
    found = []
    at = 0
    for number in range(elements):
        if len(raw) - at < _LENGTH.size:
            raise MultigrainError.field(
                field, f"ends after {number} elements, the shape says {elements}"
            )
        (size,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if size > len(raw) - at:
            raise MultigrainError.field(
                field,
                f"element {number} says it has {size} bytes, and {len(raw) - at} are left: each "
                "element must stand after its length as a little-endian uint32",
            )
        found.append(raw[at : at + size])
        at += size
    if at != len(raw):
        raise MultigrainError.field(
            field, f"has {len(raw) - at} bytes after the {elements} elements of the shape"
        )
    return found


def join_bytes(elements: Iterable[bytes]) -> bytes:
    """A raw BYTES tensor."""
    return b"".join(part for item in elements for part in (_LENGTH.pack(len(item)), item))


def split_floats(raw: bytes, images: int, size: int, field: str) -> list[bytes]:
    """A raw FP32 tensor as one piece an image, of ``size`` numbers each.

    Raises:
        MultigrainError: INVALID_FIELD for another number of bytes.
    """
    step = FLOAT_BYTES * size
    if len(raw) != images * step:
        raise MultigrainError.field(
            field, f"has {len(raw)} bytes, a FP32 tensor of this shape has {images * step}"
        )
    return [raw[at : at + step] for at in range(0, len(raw), step)]


def pack_floats(numbers: Iterable[float]) -> bytes:
    """A raw FP32 tensor."""
    packed = array("f", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
