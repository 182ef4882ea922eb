"""The tags of a TIFF file as the layout of its picture: which is read, and how it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from multigrain.images.tiff_pages import (
    BITS,
    CODEC_TAGS,
    COLOR_MAP,
    COMPRESSION,
    EXTRA_SAMPLES,
    FILL_ORDER,
    HEIGHT,
    INDEXED,
    INK_SET,
    MAX_SAMPLES,
    ORIENTATION,
    PHOTOMETRIC,
    PLANAR,
    PREDICTOR,
    ROWS_PER_STRIP,
    SAMPLE_FORMAT,
    SAMPLES,
    STRIP_OFFSETS,
    STRIP_SIZES,
    SUB_IFDS,
    TILE_HEIGHT,
    TILE_OFFSETS,
    TILE_SIZES,
    TILE_WIDTH,
    WIDTH,
    Page,
    Value,
    choose_page,
    damaged,
)

_MAX_BLOCKS: Final = 2**20
_CANON_RAW: Final = b"CR"


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


def read_layout(data: bytes) -> Layout:
    """Reads the tags of the picture that a TIFF file stands for, see :func:`choose_page`.

    Raises:
        MultigrainError: IMAGE_UNREADABLE.
    """
    page = choose_page(data)
    preview = page.reduced and SUB_IFDS in page.values
    return _layout(page, camera_raw=preview or data[8:10] == _CANON_RAW)


def _layout(page: Page, *, camera_raw: bool) -> Layout:
    width, height = page.number(WIDTH, 0), page.number(HEIGHT, 0)
    if not 0 < width < 2**31 or not 0 < height < 2**31:
        raise damaged(f"{width} x {height} pixels")
    samples = page.number(SAMPLES, 1)
    if not 0 < samples <= MAX_SAMPLES:
        raise damaged(f"{samples} samples per pixel")
    bits = _of_each_sample(page, BITS, samples)
    tiled = TILE_OFFSETS in page.values and STRIP_OFFSETS not in page.values
    if tiled:
        block_width, block_height = page.number(TILE_WIDTH, 0), page.number(TILE_HEIGHT, 0)
        offsets, sizes = _array(page, TILE_OFFSETS), _array(page, TILE_SIZES)
    else:
        block_width, block_height = width, page.number(ROWS_PER_STRIP, height) or height
        block_height = min(block_height, height)
        offsets, sizes = _array(page, STRIP_OFFSETS), _array(page, STRIP_SIZES)
    if offsets is None:
        raise damaged("it does not say where its pixels are")
    if not 0 < block_width < 2**31 or not 0 < block_height < 2**31:
        raise damaged(f"tiles of {block_width} x {block_height} pixels")
    planar = page.number(PLANAR, 1) == 2 and samples > 1
    blocks = -(-width // block_width) * -(-height // block_height) * (samples if planar else 1)
    if blocks > len(offsets) or (sizes is not None and blocks > len(sizes)):
        raise damaged(f"{len(offsets)} strips or tiles instead of {blocks}")
    photometric = page.number(PHOTOMETRIC, -1)
    return Layout(
        order=page.order,
        width=width,
        height=height,
        photometric=None if photometric < 0 else photometric,
        compression=page.number(COMPRESSION, 1),
        bits=bits,
        formats=_of_each_sample(page, SAMPLE_FORMAT, samples),
        extra=page.numbers(EXTRA_SAMPLES),
        planar=planar,
        predictor=page.number(PREDICTOR, 1),
        reversed_bits=page.number(FILL_ORDER, 1) == 2,
        orientation=page.number(ORIENTATION, 1),
        ink_set=page.number(INK_SET, 1),
        indexed=page.number(INDEXED, 0) != 0,
        color_map=_color_map(page, bits[0]),
        tiled=tiled,
        block_width=block_width,
        block_height=block_height,
        offsets=offsets[:blocks],
        sizes=None if sizes is None else sizes[:blocks],
        codec={tag: value for tag, value in page.values.items() if tag in CODEC_TAGS},
        camera_raw=camera_raw,
    )


def _array(page: Page, tag: int) -> NDArray[np.int64] | None:
    """Returns the integers of a tag that may have many; None if the page lacks it."""
    found = page.packed(tag, _MAX_BLOCKS)
    if found is None:
        return None
    raw, code = found
    numbers = np.frombuffer(raw, page.order + code).astype(np.int64)
    if numbers.min() < 0:  # or 2**63 and more
        raise damaged(f"tag {tag} has a value that it cannot have")
    return numbers


def _of_each_sample(page: Page, tag: int, samples: int) -> tuple[int, ...]:
    """Returns one number per sample; many files store a single one for all of them."""
    numbers = page.numbers(tag) or (1,)
    if len(numbers) == 1:
        return numbers * samples
    if len(numbers) < samples:
        raise damaged(f"tag {tag} has {len(numbers)} values for {samples} samples per pixel")
    return numbers[:samples]


def _color_map(page: Page, bits: int) -> NDArray[np.uint16] | None:
    numbers = _array(page, COLOR_MAP)
    if numbers is None or bits > 16 or len(numbers) < 3 << bits or numbers.max() > 65_535:
        return None
    return numbers[: 3 << bits].reshape(3, -1).astype(np.uint16)
