"""The pages of a TIFF file and their tags (TIFF 6.0 and BigTIFF, both byte orders).

Written for untrusted files: only the tags below are read, every value must lie within the file, and
no value is copied before its size is known. Imported by the daemon: neither NumPy nor Pillow here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from multigrain.errors import ErrorKind, MultigrainError

_NEW_SUBFILE_TYPE: Final = 254
_SUBFILE_TYPE: Final = 255
WIDTH: Final = 256
HEIGHT: Final = 257
BITS: Final = 258
COMPRESSION: Final = 259
PHOTOMETRIC: Final = 262
FILL_ORDER: Final = 266
STRIP_OFFSETS: Final = 273
ORIENTATION: Final = 274
SAMPLES: Final = 277
ROWS_PER_STRIP: Final = 278
STRIP_SIZES: Final = 279
PLANAR: Final = 284
PREDICTOR: Final = 317
COLOR_MAP: Final = 320
TILE_WIDTH: Final = 322
TILE_HEIGHT: Final = 323
TILE_OFFSETS: Final = 324
TILE_SIZES: Final = 325
SUB_IFDS: Final = 330
INK_SET: Final = 332
EXTRA_SAMPLES: Final = 338
SAMPLE_FORMAT: Final = 339
INDEXED: Final = 346
# What libtiff's codecs need beside the layout: CCITT options, JPEG tables, and of YCbCr the
# coefficients, subsampling, positioning and reference levels. They are passed on as they are.
CODEC_TAGS: Final = frozenset({292, 293, 347, 529, 530, 531, 532})
_TAGS: Final = (
    frozenset(
        {
            *(_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC),
            *(FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_SIZES),
            *(PLANAR, PREDICTOR, COLOR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS),
            *(TILE_SIZES, SUB_IFDS, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, INDEXED),
        }
    )
    | CODEC_TAGS
)

# Type of a value -> its size in bytes; of integers also struct's code.
_TYPE_SIZES: Final = {
    **{1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4},
    **{16: 8, 17: 8, 18: 8},
}
_INTEGERS: Final = {
    **{1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I"},
    **{16: "Q", 17: "q", 18: "Q"},
}

_MAX_ENTRIES: Final = 65_535  # of all pages together; programs write some twenty for each
_MAX_PAGES: Final = 64
MAX_SAMPLES: Final = 65_535


@dataclass(frozen=True)
class Value:
    """The value of a tag in the byte order of the file.

    Args:
        type: TIFF's number of the type.
        count: number of elements.
        raw: their bytes.
    """

    type: int
    count: int
    raw: bytes | memoryview


def damaged(problem: str) -> MultigrainError:
    """The error of a file that contradicts itself or ends early."""
    return MultigrainError(
        ErrorKind.IMAGE_UNREADABLE,
        f"the TIFF image is truncated or damaged ({problem}): send the whole file, or save it "
        "again",
    )


@dataclass(frozen=True)
class Page:
    """The tags of one page: an image file directory.

    Args:
        order: byte order of the file, "<" or ">".
        values: number of a tag -> its value, of known tags.
    """

    order: str
    values: dict[int, Value]

    def numbers(self, tag: int, most: int = MAX_SAMPLES) -> tuple[int, ...] | None:
        """Returns the integers of a tag, at most ``most``; None if the page lacks it.

        Raises:
            MultigrainError: IMAGE_UNREADABLE.
        """
        found = self.packed(tag, most)
        if found is None:
            return None
        raw, code = found
        numbers = struct.unpack(f"{self.order}{len(raw) // struct.calcsize(code)}{code}", raw)
        if min(numbers) < 0 or max(numbers) >= 2**63:
            raise damaged(f"tag {tag} has a value that it cannot have")
        return numbers

    def packed(self, tag: int, most: int) -> tuple[bytes | memoryview, str] | None:
        """Returns the bytes of a tag's integers, and the code of ``struct`` of each of them.

        Raises:
            MultigrainError: IMAGE_UNREADABLE.
        """
        value = self.values.get(tag)
        if value is None:
            return None
        if value.type not in _INTEGERS or not value.count:
            raise damaged(f"tag {tag} is not an integer")
        return value.raw[: most * _TYPE_SIZES[value.type]], _INTEGERS[value.type]

    def number(self, tag: int, default: int) -> int:
        """Returns the first integer of a tag; ``default`` if the page lacks it."""
        numbers = self.numbers(tag, 1)
        return default if numbers is None else numbers[0]

    @property
    def reduced(self) -> bool:
        """Whether the page is marked as a reduced version of another one."""
        return bool(self.number(_NEW_SUBFILE_TYPE, 0) & 1) or self.number(_SUBFILE_TYPE, 0) == 2

    @property
    def area(self) -> int:
        return self.number(WIDTH, 0) * self.number(HEIGHT, 0)


def choose_page(data: bytes) -> Page:
    """Returns the tags of the picture that a TIFF file stands for.

    That is the first page. If the file marks it as a reduced version of another page, it is the
    first larger page without that mark.

    Raises:
        MultigrainError: IMAGE_UNREADABLE.
    """
    pages = _pages(data)
    first = next(pages)
    if not first.reduced:
        return first
    larger = (page for page in pages if not page.reduced and page.area > first.area)
    return next(larger, first)


def _pages(data: bytes) -> Iterator[Page]:
    """Reads the pages one after the other; a damaged one after the first ends them."""
    order = "<" if data[:1] == b"I" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    try:
        (offset,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    except struct.error as error:
        raise damaged("the header is incomplete") from error
    seen: set[int] = set()
    left = _MAX_ENTRIES
    while offset and offset not in seen and len(seen) < _MAX_PAGES:
        seen.add(offset)
        try:
            page, offset, count = _page(data, order, offset, big, left)
        except MultigrainError:
            if len(seen) == 1:
                raise
            return
        left -= count
        yield page
    if not seen:
        raise damaged("it has no page")


def _page(data: bytes, order: str, offset: int, big: bool, most: int) -> tuple[Page, int, int]:
    """Reads the tags at ``offset``, at most ``most``.

    Returns:
        The tags, the offset of the next page or 0, and the number of tags, also of unknown ones.
    """
    counter, entry, inline = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
    start = offset + struct.calcsize(counter)
    if start > len(data):
        raise damaged(f"its tags would start at byte {offset} of {len(data)}")
    (count,) = struct.unpack_from(order + counter, data, offset)
    end = start + count * struct.calcsize("<" + entry)
    if not count or count > most or end > len(data):
        raise damaged(f"{count} tags at byte {offset} do not fit")
    values: dict[int, Value] = {}
    view = memoryview(data)
    for tag, kind, elements, field in struct.iter_unpack(order + entry, view[start:end]):
        if tag not in _TAGS or tag in values or kind not in _TYPE_SIZES:
            continue
        size = elements * _TYPE_SIZES[kind]
        raw: bytes | memoryview = field[:size]
        if size > inline:
            (place,) = struct.unpack(order + ("Q" if big else "I"), field)
            if place + size > len(data):
                raise damaged(f"the value of tag {tag} lies outside the file")
            raw = view[place : place + size]
        values[tag] = Value(kind, elements, raw)
    following = 0
    if end + inline <= len(data):
        (following,) = struct.unpack_from(order + ("Q" if big else "I"), data, end)
    return Page(order, values), following, count
