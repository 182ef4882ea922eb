"""The tags of a TIFF file: which picture is read, and how its samples are stored.

TIFF 6.0 and BigTIFF, both byte orders. Written for untrusted files: only the tags below are read,
every value must lie within the file, and no value is copied before its size is known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError

_NEW_SUBFILE_TYPE: Final = 254
_SUBFILE_TYPE: Final = 255
_WIDTH: Final = 256
_HEIGHT: Final = 257
_BITS: Final = 258
_COMPRESSION: Final = 259
_PHOTOMETRIC: Final = 262
_FILL_ORDER: Final = 266
_STRIP_OFFSETS: Final = 273
_ORIENTATION: Final = 274
_SAMPLES: Final = 277
_ROWS_PER_STRIP: Final = 278
_STRIP_SIZES: Final = 279
_PLANAR: Final = 284
_PREDICTOR: Final = 317
_COLOR_MAP: Final = 320
_TILE_WIDTH: Final = 322
_TILE_HEIGHT: Final = 323
_TILE_OFFSETS: Final = 324
_TILE_SIZES: Final = 325
_SUB_IFDS: Final = 330
_INK_SET: Final = 332
_EXTRA_SAMPLES: Final = 338
_SAMPLE_FORMAT: Final = 339
_INDEXED: Final = 346
# What libtiff's codecs need beside the layout: CCITT options, JPEG tables, and of YCbCr the
# coefficients, subsampling, positioning and reference levels. They are passed on as they are.
_CODEC_TAGS: Final = frozenset({292, 293, 347, 529, 530, 531, 532})
_TAGS: Final = (
    frozenset(
        {
            *(_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC),
            *(_FILL_ORDER, _STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_SIZES),
            *(_PLANAR, _PREDICTOR, _COLOR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS),
            *(_TILE_SIZES, _SUB_IFDS, _INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _INDEXED),
        }
    )
    | _CODEC_TAGS
)

# Type of a value -> its size in bytes; of integers also numpy's type.
_TYPE_SIZES: Final = {
    **{1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4},
    **{16: 8, 17: 8, 18: 8},
}
_INTEGERS: Final = {
    **{1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4"},
    **{16: "u8", 17: "i8", 18: "u8"},
}

_MAX_ENTRIES: Final = 65_535  # of all pages together; programs write some twenty for each
_MAX_PAGES: Final = 64
_MAX_SAMPLES: Final = 65_535
_MAX_BLOCKS: Final = 2**20
_CANON_RAW: Final = b"CR"


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


@dataclass(frozen=True)
class Layout:
    """How the samples of a picture are stored.

    Args:
        order: byte order of the file, "<" or ">".
        width, height: in pixels, before ``orientation`` is applied.
        photometric: meaning of the samples (0 white is zero, 1 black is zero, 2 RGB, 3 palette,
            5 inks, 6 YCbCr, ...); None if the file does not say.
        compression: number of the compression.
        bits: bits of each sample of a pixel.
        formats: format of each sample (1 unsigned, 2 signed, 3 floating point, 4 undefined, ...).
        extra: meaning of the samples after the colors (0 unspecified, 1 associated alpha,
            2 unassociated alpha); None if the file does not say.
        planar: whether each sample has blocks of its own.
        predictor: 1 none, 2 differences of integers, 3 of floating-point numbers.
        reversed_bits: whether the first bit of a byte is its lowest.
        orientation: 1 to 8, as in EXIF.
        ink_set: 1 CMYK.
        indexed: whether samples of a kind other than a palette are indexes.
        color_map: uint16 (3, 2**bits) or None.
        tiled: whether blocks are tiles; otherwise they are strips.
        block_width, block_height: of a tile, or of a strip; the last strip may be lower.
        offsets, sizes: int64, of the blocks in bytes; ``sizes`` is None if the file lacks it.
        codec: tags for the decoder of the compression.
        camera_raw: whether the picture is a preview of the sensor's data.
    """

    order: str
    width: int
    height: int
    photometric: int | None
    compression: int
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    extra: tuple[int, ...] | None
    planar: bool
    predictor: int
    reversed_bits: bool
    orientation: int
    ink_set: int
    indexed: bool
    color_map: NDArray[np.uint16] | None
    tiled: bool
    block_width: int
    block_height: int
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64] | None
    codec: dict[int, Value]
    camera_raw: bool

    @property
    def samples(self) -> int:
        """Samples per pixel."""
        return len(self.bits)

    @property
    def across(self) -> int:
        """Blocks side by side."""
        return -(-self.width // self.block_width)

    @property
    def down(self) -> int:
        """Rows of blocks."""
        return -(-self.height // self.block_height)


def damaged(problem: str) -> MultigrainError:
    """The error of a file that contradicts itself or ends early."""
    return MultigrainError(
        ErrorKind.IMAGE_UNREADABLE,
        f"the TIFF image is truncated or damaged ({problem}): send the whole file, or save it "
        "again",
    )


def read_layout(data: bytes) -> Layout:
    """Reads the tags of the picture that a TIFF file stands for.

    That is the first page. If the file marks it as a reduced version of another page, it is the
    first larger page without that mark.

    Raises:
        MultigrainError: IMAGE_UNREADABLE.
    """
    pages = _pages(data)
    first = chosen = next(pages)
    if first.reduced:
        larger = (page for page in pages if not page.reduced and page.area > first.area)
        chosen = next(larger, first)
    preview = chosen.reduced and _SUB_IFDS in chosen.values
    return _layout(chosen, camera_raw=preview or data[8:10] == _CANON_RAW)


@dataclass(frozen=True)
class _Page:
    """The tags of one page: an image file directory."""

    order: str
    values: dict[int, Value]

    def numbers(self, tag: int, most: int = _MAX_BLOCKS) -> NDArray[np.int64] | None:
        """Returns the integers of a tag, at most ``most``; None if the page lacks it."""
        value = self.values.get(tag)
        if value is None:
            return None
        if value.type not in _INTEGERS or not value.count:
            raise damaged(f"tag {tag} is not an integer")
        raw = value.raw[: most * _TYPE_SIZES[value.type]]
        numbers = np.frombuffer(raw, self.order + _INTEGERS[value.type]).astype(np.int64)
        if numbers.min() < 0:  # or 2**63 and more
            raise damaged(f"tag {tag} has a value that it cannot have")
        return numbers

    def number(self, tag: int, default: int) -> int:
        numbers = self.numbers(tag, 1)
        return default if numbers is None else int(numbers[0])

    def numbers_or_none(self, tag: int) -> tuple[int, ...] | None:
        numbers = self.numbers(tag, _MAX_SAMPLES)
        return None if numbers is None else tuple(map(int, numbers))

    @property
    def reduced(self) -> bool:
        """Whether the page is marked as a reduced version of another one."""
        return bool(self.number(_NEW_SUBFILE_TYPE, 0) & 1) or self.number(_SUBFILE_TYPE, 0) == 2

    @property
    def area(self) -> int:
        return self.number(_WIDTH, 0) * self.number(_HEIGHT, 0)


def _pages(data: bytes) -> Iterator[_Page]:
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


def _page(data: bytes, order: str, offset: int, big: bool, most: int) -> tuple[_Page, int, int]:
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
    return _Page(order, values), following, count


def _layout(page: _Page, *, camera_raw: bool) -> Layout:
    width, height = page.number(_WIDTH, 0), page.number(_HEIGHT, 0)
    if not 0 < width < 2**31 or not 0 < height < 2**31:
        raise damaged(f"{width} x {height} pixels")
    samples = page.number(_SAMPLES, 1)
    if not 0 < samples <= _MAX_SAMPLES:
        raise damaged(f"{samples} samples per pixel")
    bits = _of_each_sample(page, _BITS, samples)
    tiled = _TILE_OFFSETS in page.values and _STRIP_OFFSETS not in page.values
    if tiled:
        block_width, block_height = page.number(_TILE_WIDTH, 0), page.number(_TILE_HEIGHT, 0)
        offsets, sizes = page.numbers(_TILE_OFFSETS), page.numbers(_TILE_SIZES)
    else:
        block_width, block_height = width, page.number(_ROWS_PER_STRIP, height) or height
        block_height = min(block_height, height)
        offsets, sizes = page.numbers(_STRIP_OFFSETS), page.numbers(_STRIP_SIZES)
    if offsets is None:
        raise damaged("it does not say where its pixels are")
    if not 0 < block_width < 2**31 or not 0 < block_height < 2**31:
        raise damaged(f"tiles of {block_width} x {block_height} pixels")
    planar = page.number(_PLANAR, 1) == 2 and samples > 1
    blocks = -(-width // block_width) * -(-height // block_height) * (samples if planar else 1)
    if blocks > len(offsets) or (sizes is not None and blocks > len(sizes)):
        raise damaged(f"{len(offsets)} strips or tiles instead of {blocks}")
    photometric = page.number(_PHOTOMETRIC, -1)
    return Layout(
        order=page.order,
        width=width,
        height=height,
        photometric=None if photometric < 0 else photometric,
        compression=page.number(_COMPRESSION, 1),
        bits=bits,
        formats=_of_each_sample(page, _SAMPLE_FORMAT, samples),
        extra=page.numbers_or_none(_EXTRA_SAMPLES),
        planar=planar,
        predictor=page.number(_PREDICTOR, 1),
        reversed_bits=page.number(_FILL_ORDER, 1) == 2,
        orientation=page.number(_ORIENTATION, 1),
        ink_set=page.number(_INK_SET, 1),
        indexed=page.number(_INDEXED, 0) != 0,
        color_map=_color_map(page, bits[0]),
        tiled=tiled,
        block_width=block_width,
        block_height=block_height,
        offsets=offsets[:blocks],
        sizes=None if sizes is None else sizes[:blocks],
        codec={tag: value for tag, value in page.values.items() if tag in _CODEC_TAGS},
        camera_raw=camera_raw,
    )


def _of_each_sample(page: _Page, tag: int, samples: int) -> tuple[int, ...]:
    """Returns one number per sample; many files store a single one for all of them."""
    numbers = page.numbers_or_none(tag) or (1,)
    if len(numbers) == 1:
        return numbers * samples
    if len(numbers) < samples:
        raise damaged(f"tag {tag} has {len(numbers)} values for {samples} samples per pixel")
    return numbers[:samples]


def _color_map(page: _Page, bits: int) -> NDArray[np.uint16] | None:
    numbers = page.numbers(_COLOR_MAP)
    if numbers is None or bits > 16 or len(numbers) < 3 << bits or numbers.max() > 65_535:
        return None
    return numbers[: 3 << bits].reshape(3, -1).astype(np.uint16)
