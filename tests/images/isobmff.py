"""Changes of AVIF and HEIC files at the level of their boxes (ISO/IEC 14496-12, 23008-12)."""

from __future__ import annotations

import struct
from collections.abc import Iterator


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and contents of each box."""
    position = 0
    while position < len(data):
        size, name = struct.unpack(">I4s", data[position : position + 8])
        yield name, data[position + 8 : position + size]
        position += size


def box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, name) + body


def rotation(quarters: int) -> bytes:
    """The property that turns a picture counter-clockwise by so many quarters of a turn."""
    return box(b"irot", bytes((quarters,)))


def mirror(axis: int) -> bytes:
    """The property that mirrors a picture: 0 = top and bottom exchanged, 1 = left and right."""
    return box(b"imir", bytes((axis,)))


def crop(width: int, height: int, x: int = 0, y: int = 0) -> bytes:
    """The property that shows a part only; its center is (x, y) halves of a pixel off."""
    return box(b"clap", struct.pack(">4I4i", width, 1, height, 1, x, 2, y, 2))


def with_properties(data: bytes, *properties: bytes) -> bytes:
    """The file with essential properties added to its first item of the association table."""
    parts = dict(boxes(data))
    meta = parts[b"meta"]
    inner = list(boxes(meta[4:]))
    iprp = dict(boxes(dict(inner)[b"iprp"]))
    count = len(list(boxes(iprp[b"ipco"])))
    iprp[b"ipco"] += b"".join(properties)
    ipma = bytearray(iprp[b"ipma"])
    assert ipma[:4] == bytes(4)  # version 0, indices of 7 bits
    ipma[10] += len(properties)
    at = 11 + ipma[10] - len(properties)
    ipma[at:at] = bytes(0x80 | (count + 1 + i) for i in range(len(properties)))
    iprp[b"ipma"] = bytes(ipma)
    growth = sum(map(len, properties)) + len(properties)
    changed = b"".join(
        box(name, b"".join(box(*part) for part in iprp.items()))
        if name == b"iprp"
        else box(name, _moved(body, growth) if name == b"iloc" else body)
        for name, body in inner
    )
    parts[b"meta"] = meta[:4] + changed
    return b"".join(box(*part) for part in parts.items())


def _moved(iloc: bytes, distance: int) -> bytes:
    """An item location box (version 0 or 1) after its data moved."""
    version, sizes = iloc[0], iloc[4]
    assert version in (0, 1)
    assert sizes == 0x44
    base = iloc[5] >> 4
    assert base in (0, 4)
    out = bytearray(iloc)
    position = 8
    for _ in range(struct.unpack(">H", iloc[6:8])[0]):
        position += (4 if version == 0 else 6) + base
        if base:
            (offset,) = struct.unpack(">I", iloc[position - 4 : position])
            out[position - 4 : position] = struct.pack(">I", offset + distance)
        (extents,) = struct.unpack(">H", iloc[position : position + 2])
        position += 2
        for _ in range(extents):
            (offset,) = struct.unpack(">I", iloc[position : position + 4])
            if not base:
                out[position : position + 4] = struct.pack(">I", offset + distance)
            position += 8
    return bytes(out)


def with_size(data: bytes, width: int, height: int) -> bytes:
    """The file with another size of its pictures in its header."""
    at = 0
    out = bytearray(data)
    while (at := data.find(b"ispe", at)) >= 0:
        out[at + 8 : at + 16] = struct.pack(">II", width, height)
        at += 16
    return bytes(out)
