"""The boxes of an AVIF or HEIC file that its libraries do not look at as needed.

Sources: ISO/IEC 14496-12 (boxes), 23008-12 (items and their properties: "ispe", "clap").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_MAX_BOXES: Final = 10_000


def hide_exif(data: bytes) -> bytes:
    """Returns the file with its EXIF item renamed in the table of contents.

    EXIF may be damaged or of any size, and must not turn the picture.
    """
    for name, start, end in _boxes(data, 0, len(data)):
        if name == b"meta":
            table = data[start:end].replace(b"Exif", b"skip")
            return b"".join((data[:start], table, data[end:]))
    return data


def largest_size(data: bytes) -> tuple[int, int]:
    """Returns the size of the file's largest picture before cropping; (0, 0) if there is none.

    A decoder needs memory for that, even if the file shows a small part only.
    """
    sizes = [
        (_number(data, start + 4, 4), _number(data, start + 8, 4))
        for name, start, _ in _properties(data)
        if name == b"ispe"
    ]
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))


def item_types(data: bytes) -> frozenset[bytes] | None:
    """Returns the types of the file's items, such as "hvc1"; None if it has no table of them."""
    meta = _meta(data)
    if meta is None:
        return None
    found = set()
    for name, start, end in _boxes(data, *meta):
        if name == b"iinf":
            first = start + (6 if data[start : start + 1] == b"\x00" else 8)
            for inner, at, _ in _boxes(data, first, end):
                if inner == b"infe" and data[at] >= 2:
                    found.add(data[at + (8 if data[at] == 2 else 10) :][:4])
    return frozenset(found)


def primary_crop(data: bytes) -> tuple[int, int, int, int] | None:
    """Returns the part of the primary picture to show: left, top, width, height, in whole pixels.

    None if it is shown whole, or if the box ("clap") makes no sense.
    """
    meta = _meta(data)
    properties = list(_properties(data))
    if meta is None:
        return None
    primary, indices = -1, dict[int, list[int]]()
    for name, start, end in _boxes(data, *meta):
        if name == b"pitm":
            primary = _number(data, start + 4, 2 if data[start] == 0 else 4)
        elif name == b"iprp":
            for inner, first, last in _boxes(data, start, end):
                if inner == b"ipma":
                    indices.update(_associations(data, first, last))
    size = crop = None
    for index in indices.get(primary, ()):
        if 1 <= index <= len(properties):
            name, start, end = properties[index - 1]
            if name == b"ispe":
                size = _number(data, start + 4, 4), _number(data, start + 8, 4)
            elif name == b"clap" and end - start >= 32:
                crop = [_number(data, start + at, 4, signed=at >= 16) for at in range(0, 32, 4)]
    if size is None or crop is None or not all(crop[1::2]):
        return None
    width, height, x, y = (crop[i] / crop[i + 1] for i in (0, 2, 4, 6))
    left, top = x + (size[0] - width) / 2, y + (size[1] - height) / 2
    box = round(left), round(top), round(width), round(height)
    inside = min(box[:2]) >= 0 and box[0] + box[2] <= size[0] and box[1] + box[3] <= size[1]
    return box if inside and min(box[2:]) > 0 and box[2:] != size else None


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields name, start and end of the contents of each box; stops at a damaged one."""
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        size, head = _number(data, start, 4), 8
        if size == 1:
            size, head = _number(data, start + 8, 8), 16
        elif size == 0:
            size = end - start
        if size < head:
            return
        yield data[start + 4 : start + 8], start + head, min(start + size, end)
        start += size


def _meta(data: bytes) -> tuple[int, int] | None:
    """Returns the range of the boxes in the table of contents."""
    for name, start, end in _boxes(data, 0, len(data)):
        if name == b"meta":
            return start + 4, end
    return None


def _properties(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields the properties of all pictures, in order: their indices start with 1."""
    meta = _meta(data)
    for name, start, end in _boxes(data, *meta) if meta else ():
        if name == b"iprp":
            for inner, first, last in _boxes(data, start, end):
                if inner == b"ipco":
                    yield from _boxes(data, first, last)


def _associations(data: bytes, start: int, end: int) -> dict[int, list[int]]:
    """Returns the indices of each item's properties."""
    id_bytes = 2 if data[start] == 0 else 4
    index_bytes = 2 if _number(data, start + 1, 3) & 1 else 1
    found: dict[int, list[int]] = {}
    at = start + 8
    for _ in range(min(_number(data, start + 4, 4), _MAX_BOXES)):
        if at + id_bytes >= end:
            break
        item, count = _number(data, at, id_bytes), data[at + id_bytes]
        at += id_bytes + 1
        # The highest bit says that a property is essential.
        mask = (1 << 8 * index_bytes - 1) - 1
        found[item] = [
            _number(data, at + i * index_bytes, index_bytes) & mask for i in range(count)
        ]
        at += count * index_bytes
    return found


def _number(data: bytes, at: int, size: int, *, signed: bool = False) -> int:
    return int.from_bytes(data[at : at + size], "big", signed=signed)
