"""The boxes of an AVIF or HEIC file that its libraries do not look at as needed.

Sources: ISO/IEC 14496-12 (boxes), 23008-12 (items and their properties: "ispe", "clap").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from multigrain.images.errors import unsupported

# Boxes and items of a file together. Each costs time, however small it is; phones write some
# hundred.
_MAX_BOXES: Final = 10_000

_Range = tuple[int, int]


@dataclass(frozen=True)
class Contents:
    """What the table of contents of a file says.

    Attributes:
        meta: range of the boxes in the table; None if there is none.
        types: types of the file's items, such as "hvc1"; None if there is no table.
        largest: size of the file's largest picture before cropping; (0, 0) if there is none. A
            decoder needs memory for that, even if the file shows a small part only.
        crop: the part of the primary picture to show: left, top, width, height, in whole pixels.
            None if it is shown whole, or if the box ("clap") makes no sense.
    """

    meta: _Range | None
    types: frozenset[bytes] | None
    largest: tuple[int, int]
    crop: tuple[int, int, int, int] | None


def read_contents(data: bytes) -> Contents:
    """Reads the table of contents; a damaged box ends the list that it is in.

    Raises:
        MultigrainError: IMAGE_FORMAT, if there are too many boxes.
    """
    reader = _Reader(data)
    meta = next(
        ((start + 4, end) for name, start, end in reader.boxes(0, len(data)) if name == b"meta"),
        None,
    )
    if meta is None:
        return Contents(None, None, (0, 0), None)
    primary = -1
    types: set[bytes] = set()
    properties: list[tuple[bytes, int, int]] = []
    associations: list[_Range] = []
    for name, start, end in reader.boxes(*meta):
        if name == b"pitm":
            primary = reader.number(start + 4, 2 if data[start] == 0 else 4)
        elif name == b"iinf":
            types.update(reader.item_types(start, end))
        elif name == b"iprp":
            for inner, first, last in reader.boxes(start, end):
                if inner == b"ipco":
                    properties.extend(reader.boxes(first, last))
                elif inner == b"ipma":
                    associations.append((first, last))
    indices: list[int] = []
    for first, last in associations:
        indices = reader.associated(primary, first, last) or indices
    sizes = [reader.size(start) for name, start, _ in properties if name == b"ispe"]
    largest = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    shown = [properties[index - 1] for index in indices if 1 <= index <= len(properties)]
    return Contents(meta, frozenset(types), largest, _crop(reader, shown))


def hide_exif(data: bytes, contents: Contents) -> bytes:
    """Returns the file with its EXIF item renamed in the table of contents.

    EXIF may be damaged or of any size, and must not turn the picture.
    """
    if contents.meta is None:
        return data
    start, end = contents.meta
    return b"".join((data[:start], data[start:end].replace(b"Exif", b"skip"), data[end:]))


class _Reader:
    """Reads the boxes of a file and counts them.

    Args:
        data: the file.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = _MAX_BOXES

    def boxes(self, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Yields name, start and end of the contents of each box; stops at a damaged one."""
        while start + 8 <= end:
            self._count()
            size, head = self.number(start, 4), 8
            if size == 1:
                size, head = self.number(start + 8, 8), 16
            elif size == 0:
                size = end - start
            if size < head:
                return
            yield self._data[start + 4 : start + 8], start + head, min(start + size, end)
            start += size

    def item_types(self, start: int, end: int) -> Iterator[bytes]:
        """Yields the type of each item in a table of items ("iinf")."""
        data = self._data
        first = start + (6 if data[start : start + 1] == b"\x00" else 8)
        for name, at, _ in self.boxes(first, end):
            if name == b"infe" and data[at] >= 2:
                yield data[at + (8 if data[at] == 2 else 10) :][:4]

    def associated(self, item: int, start: int, end: int) -> list[int]:
        """Returns the indices of an item's properties in a table of them ("ipma")."""
        data = self._data
        id_bytes = 2 if data[start] == 0 else 4
        index_bytes = 2 if self.number(start + 1, 3) & 1 else 1
        # The highest bit says that a property is essential.
        mask = (1 << 8 * index_bytes - 1) - 1
        found: list[int] = []
        at = start + 8
        for _ in range(self.number(start + 4, 4)):
            if at + id_bytes >= end:
                break
            self._count()
            number, count = self.number(at, id_bytes), data[at + id_bytes]
            at += id_bytes + 1
            if number == item:
                places = range(at, at + count * index_bytes, index_bytes)
                found = [self.number(place, index_bytes) & mask for place in places]
            at += count * index_bytes
        return found

    def size(self, start: int) -> tuple[int, int]:
        """Returns width and height in a box "ispe"."""
        return self.number(start + 4, 4), self.number(start + 8, 4)

    def number(self, at: int, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._data[at : at + size], "big", signed=signed)

    def _count(self) -> None:
        if not self._left:
            raise unsupported(f"a HEIF image with more than {_MAX_BOXES} boxes", "save it again")
        self._left -= 1


def _crop(
    reader: _Reader, properties: list[tuple[bytes, int, int]]
) -> tuple[int, int, int, int] | None:
    """Returns the part of a picture to show by its properties."""
    size = crop = None
    for name, start, end in properties:
        if name == b"ispe":
            size = reader.size(start)
        elif name == b"clap" and end - start >= 32:
            crop = [reader.number(start + at, 4, signed=at >= 16) for at in range(0, 32, 4)]
    if size is None or crop is None or not all(crop[1::2]):
        return None
    width, height, x, y = (crop[i] / crop[i + 1] for i in (0, 2, 4, 6))
    left, top = x + (size[0] - width) / 2, y + (size[1] - height) / 2
    box = round(left), round(top), round(width), round(height)
    inside = min(box[:2]) >= 0 and box[0] + box[2] <= size[0] and box[1] + box[3] <= size[1]
    return box if inside and min(box[2:]) > 0 and box[2:] != size else None
