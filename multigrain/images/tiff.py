"""Decoding of TIFF files, from the tags that say what the samples mean.

TIFF has some thousand combinations of sample sizes, color kinds, planes, alpha channels and
compressions, and a general decoder reads some of them wrongly without a word. Here the tags are
read first. Combinations that the tests prove right are decoded, the others are refused by name.

Pillow (libtiff) only undoes the compression: the bytes of strips and tiles are given to it as an
8-bit gray picture, and what the bytes mean is decided here. Compressions that know about samples
(JPEG, CCITT fax) and subsampled YCbCr are given to it with their tags.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, WebPImagePlugin

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.picture import Picture
from multigrain.images.tiff_pages import Value, damaged
from multigrain.images.tiff_tags import Layout, read_layout

_NONE: Final = 1
_JPEG: Final = 7
_WEBP: Final = 50001
_CCITT: Final = frozenset({2, 3, 4})
# Compressions of a stream of bytes: LZW, deflate (two numbers), PackBits, LZMA, Zstandard.
_STREAMS: Final = frozenset({5, 8, 32946, 32773, 34925, 50000})
_PACKBITS: Final = 32773
_COMPRESSIONS: Final = {
    6: "old-style JPEG",
    9: "JBIG",
    10: "JBIG",
    22610: "JPEG XR",
    32766: "NeXT",
    32771: "word-aligned CCITT",
    32809: "ThunderScan",
    32908: "Pixar",
    32909: "Pixar",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv",
    34712: "JPEG 2000",
    34715: "JBIG2",
    34887: "LERC",
    34892: "lossy JPEG (DNG)",
    34933: "PNG",
    34934: "JPEG XR",
    50002: "JPEG XL",
    52546: "JPEG XL",
}

_WHITE_IS_ZERO: Final = 0
_BLACK_IS_ZERO: Final = 1
_RGB: Final = 2
_PALETTE: Final = 3
_CMYK: Final = 5
_YCBCR: Final = 6
# Photometric interpretation -> number of color samples, of those that are read.
_COLORS: Final = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_PHOTOMETRIC: Final = {
    4: "a mask instead of a picture",
    8: "CIELab colors",
    9: "ICCLab colors",
    10: "ITULab colors",
    32803: "the raw data of a camera",
    32844: "LogL brightness",
    32845: "LogLuv colors",
    34892: "the raw data of a camera",
    51177: "a depth map",
    52527: "a mask instead of a picture",
}
_FORMATS: Final = {
    2: "signed samples",
    3: "floating-point samples",
    5: "complex samples",
    6: "complex samples",
}

_UNSPECIFIED: Final = 0
_ASSOCIATED: Final = 1
_UNASSOCIATED: Final = frozenset({2, 999})  # 999 is written by CorelDRAW 10
_MAX_BITS: Final = 16
_MAX_EXTRA: Final = 3
_ORDINALS: Final = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
_AT_ONCE: Final = 2**19  # bytes of packed samples that are converted together
_PADDING: Final = 2**22  # pixels of tiles that may lie outside of a small picture
_BLOCK_OVERHEAD: Final = 64  # bytes of a compressed strip or tile beside its samples
_REVERSED: Final = np.packbits(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1
)[:, 0]


class Tiff(Picture):
    """A TIFF file whose tags were read, and which can be decoded.

    Args:
        data: the file.

    Attributes:
        form: name of the format.
        size: (width, height) in pixels, as stored.
        stored: size of a row of tiles, which is decoded as a whole; (0, 0) of strips.
        orientation: EXIF orientation that must still be applied to ``load``'s result.

    Raises:
        MultigrainError: IMAGE_UNREADABLE or IMAGE_FORMAT.
    """

    form = "TIFF"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._layout = layout = read_layout(data)
        self.size = layout.width, layout.height
        self.orientation = layout.orientation
        problem = _unsupported(layout)
        if problem is not None:
            raise _refused(problem)
        if layout.photometric == _PALETTE and layout.color_map is None:
            raise damaged("its color table is missing or incomplete")
        _check_blocks(layout, len(data))
        if layout.tiled:
            self.stored = layout.across * layout.block_width, layout.block_height

    def load(self, factor: int = 1) -> Image.Image:
        """Decodes the pixels.

        Args:
            factor: 1: a TIFF is not decoded at a fraction of its size.

        Returns:
            An image of mode RGB, as stored, with transparency composited on white.

        Raises:
            MultigrainError: IMAGE_UNREADABLE, or IMAGE_FORMAT for a channel of unspecified meaning.
        """
        layout = self._layout
        try:
            if layout.compression in _CCITT or layout.compression == _JPEG or _is_ycbcr(layout):
                return _decode(_with_tags(self._data, layout)).convert("RGB")
            return _pixels(self._data, layout)
        except (MultigrainError, MemoryError):
            raise
        except Exception as error:  # decoders of damaged data raise all kinds of exceptions
            raise damaged("its compressed pixels are invalid") from error


def _refused(kind: str, todo: str = "") -> MultigrainError:
    return MultigrainError(
        ErrorKind.IMAGE_FORMAT,
        f"the image is a TIFF with {kind}, which cannot be read: {todo}save it as gray or RGB with "
        "8 or 16 bits per channel in a TIFF, PNG or JPEG file",
    )


def _is_ycbcr(layout: Layout) -> bool:
    return layout.photometric == _YCBCR


def _unsupported(layout: Layout) -> str | None:
    """Names what keeps a picture from being read; None if it can be read."""
    compression = layout.compression
    if layout.camera_raw:
        return "the raw data of a camera or a reduced copy as its first picture"
    if compression in _COMPRESSIONS:
        return f"{_COMPRESSIONS[compression]} compression"
    if compression not in {_NONE, _JPEG, _WEBP, *_CCITT, *_STREAMS}:
        return f"compression {compression}"
    photometric = layout.photometric
    if photometric is None:
        return "samples of unknown meaning (no PhotometricInterpretation tag)"
    if photometric not in _COLORS:
        return _PHOTOMETRIC.get(photometric, f"photometric interpretation {photometric}")
    if layout.indexed and photometric != _PALETTE:
        return "indexed colors of another kind than RGB"
    if photometric == _CMYK and layout.ink_set != 1:
        return "inks other than CMYK"
    return _unsupported_samples(layout) or _unsupported_by_codec(layout)


def _unsupported_samples(layout: Layout) -> str | None:
    bits, formats = set(layout.bits), set(layout.formats)
    if len(bits) > 1:
        return f"samples of different sizes ({', '.join(map(str, sorted(bits)))} bits)"
    (size,) = bits
    for number in sorted(formats - {1, 4}):  # a reader should take "undefined" as unsigned
        return f"{size}-bit {_FORMATS.get(number, f'samples of format {number}')}"
    if not 1 <= size <= _MAX_BITS:
        return f"{size}-bit samples"
    return _unsupported_extra(layout)


def _unsupported_extra(layout: Layout) -> str | None:
    assert layout.photometric is not None
    extra = _extra(layout)
    samples = layout.samples
    if extra is None:
        raise damaged(f"{samples} samples per pixel are too few for its colors")
    if layout.extra is None and len(extra) > 1:
        return f"{samples} channels"
    for number in extra:
        if number not in {_UNSPECIFIED, _ASSOCIATED, *_UNASSOCIATED}:
            return f"a channel of an unknown kind ({number})"
    alpha = _alpha(layout)
    if alpha is None and len(extra) > (_MAX_EXTRA if _COLORS[layout.photometric] > 1 else 1):
        return f"{samples} channels"
    if alpha is not None and len(extra) > _MAX_EXTRA:
        return f"{samples} channels"
    if (
        alpha is not None
        and extra[alpha - samples] == _ASSOCIATED
        and layout.photometric not in (_BLACK_IS_ZERO, _RGB)
    ):
        return "associated alpha and colors that are not gray or RGB"
    return None


def _unsupported_by_codec(layout: Layout) -> str | None:
    compression, photometric = layout.compression, layout.photometric
    (bits,) = set(layout.bits)
    name = {_JPEG: "JPEG", _WEBP: "WebP", **dict.fromkeys(_CCITT, "CCITT")}.get(compression)
    if layout.predictor != 1 and compression not in {*_CCITT, _JPEG, _WEBP}:
        known = layout.predictor == 2 and bits in (8, 16) and not _is_ycbcr(layout)
        if not known or compression in (_NONE, _PACKBITS):
            return f"predictor {layout.predictor} for {bits}-bit samples of this compression"
    if compression in _CCITT and (bits, layout.samples) != (1, 1):
        return f"CCITT compression of {bits}-bit samples, {layout.samples} per pixel"
    if compression in _CCITT and photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        return "CCITT compression of colors"
    if (compression in (_JPEG, _WEBP) or _is_ycbcr(layout)) and bits != 8:
        return f"{bits}-bit {name} compression" if name else f"{bits}-bit YCbCr colors"
    if compression == _WEBP and (photometric != _RGB or layout.samples > 4 or layout.planar):
        return "WebP compression of a kind other than RGB"
    if compression == _JPEG and photometric == _PALETTE:
        return "JPEG compression of a palette"
    if compression == _JPEG or _is_ycbcr(layout):
        what = f"{name} compression" if name else "YCbCr colors"
        if _extra(layout):
            return f"{what} and {layout.samples} channels"
        if layout.planar:
            return f"{what} in separate planes"
        if layout.reversed_bits and compression == _JPEG:
            return f"{what} of reversed bits"
    return None


def _extra(layout: Layout) -> tuple[int, ...] | None:
    """Returns the meanings of the samples after the colors; None if colors are missing."""
    assert layout.photometric is not None
    count = layout.samples - _COLORS[layout.photometric]
    if count < 0:
        return None
    known = (layout.extra or ())[:count]
    return known + (_UNSPECIFIED,) * (count - len(known))


def _alpha(layout: Layout) -> int | None:
    """Returns the index of the alpha sample."""
    extra = _extra(layout) or ()
    for index, number in enumerate(extra, layout.samples - len(extra)):
        if number == _ASSOCIATED or number in _UNASSOCIATED:
            return index
    return None


def _check_blocks(layout: Layout, length: int) -> None:
    """Checks that the strips or tiles lie in the file and are not far more than it could hold."""
    padded = layout.across * layout.block_width * layout.down * layout.block_height
    if layout.tiled and padded > 4 * layout.width * layout.height + _PADDING:
        raise _refused(
            f"tiles of {layout.block_width} x {layout.block_height} pixels for a picture of "
            f"{layout.width} x {layout.height}"
        )
    if layout.offsets.min() < 8 or layout.offsets.max() >= length:
        raise damaged("its pixels lie outside the file")
    # The places of plain samples follow from the tags; all other blocks are copied as they are.
    plain = layout.compression == _NONE and not _is_ycbcr(layout)
    if layout.sizes is None:
        if not plain and len(layout.offsets) > 1:
            raise damaged("the sizes of its strips are missing")
        return
    if plain:
        return
    # Each first: a sum of numbers of 63 bits could overflow.
    sizes = layout.sizes
    if sizes.min() < 1 or sizes.max() > length or (layout.offsets + sizes).max() > length:
        raise damaged("its pixels lie outside the file")
    # Equal tiles may share bytes, but then they compress well.
    block = _row_bytes(layout) * layout.block_height + _BLOCK_OVERHEAD
    if int(sizes.sum()) > 2 * length + len(sizes) * block:
        raise damaged("its strips or tiles overlap")


def _row_bytes(layout: Layout) -> int:
    """Returns the bytes of a row of a strip or tile."""
    samples = 1 if layout.planar else layout.samples
    return -(-layout.block_width * samples * layout.bits[0] // 8)


def _pixels(data: bytes, layout: Layout) -> Image.Image:
    """Decodes the samples and converts them to RGB."""
    canvas: Image.Image | None = None
    row_bytes = _row_bytes(layout) * layout.across
    at_once = max(1, _AT_ONCE // (row_bytes * layout.block_height))
    # A strip or a row of tiles may be as large as the picture: convert a part of it at a time.
    step = max(1, _AT_ONCE // row_bytes)
    planes = layout.samples if layout.planar else 1
    for first in range(0, layout.down, at_once):
        last = min(first + at_once, layout.down)
        top = first * layout.block_height
        rows = min(last * layout.block_height, layout.height) - top
        packed = [_blocks(data, layout, plane, first, last) for plane in range(planes)]
        if canvas is None:  # the library needs most memory before
            canvas = Image.new("RGB", (layout.width, layout.height), None)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            parts = [_unpack(_lines(block, layout, start, stop), layout) for block in packed]
            samples = parts[0] if planes == 1 else np.concatenate(parts, axis=2)
            result = np.empty((stop - start, layout.width, 3), np.uint8)
            _to_rgb(samples[:, : layout.width], layout, result)
            canvas.paste(Image.fromarray(result), (0, top + start))
        del packed  # before the next ones are read
    assert canvas is not None
    return canvas


def _to_rgb(samples: NDArray[np.integer], layout: Layout, result: NDArray[np.uint8]) -> None:
    """Converts samples (rows, W, samples per pixel) to RGB on white (rows, W, 3)."""
    most = (1 << layout.bits[0]) - 1
    extra, alpha = _extra(layout) or (), _alpha(layout)
    count = layout.samples - len(extra)
    for index, number in enumerate(extra, count):
        # Other programs take such a channel for alpha. Where it is opaque all mean the same.
        if index != alpha and samples[:, :, index].min() < most:
            meaning = (
                "of unspecified meaning" if number == _UNSPECIFIED else "that is a second alpha"
            )
            raise _refused(
                f"a {_ORDINALS[index]} channel {meaning}",
                "remove the channel, or mark it as the only alpha (tag ExtraSamples); or ",
            )
    if most == 255 and alpha is None and layout.photometric in (_BLACK_IS_ZERO, _RGB):
        result[:] = samples[:, :, :count]
        return
    colors: NDArray[np.float32]
    if layout.photometric == _PALETTE:
        colors = _palette(layout)[samples[:, :, 0]]
    else:
        colors = samples[:, :, :count] * np.float32(1 / most)
    if layout.photometric == _WHITE_IS_ZERO:
        colors = 1 - colors
    elif layout.photometric == _CMYK:
        colors = (1 - colors[:, :, :3]) * (1 - colors[:, :, 3:])
    if alpha is not None:
        opaque = samples[:, :, alpha : alpha + 1] * np.float32(1 / most)
        if extra[alpha - layout.samples] != _ASSOCIATED:
            colors = colors * opaque
        colors = np.minimum(colors + (1 - opaque), 1)
    result[:] = colors * 255 + np.float32(0.5)


def _palette(layout: Layout) -> NDArray[np.float32]:
    """Returns the colors (2**bits, 3) of a palette image, from 0 to 1."""
    assert layout.color_map is not None
    # Old files have 8-bit values: libtiff makes the same guess.
    most = 65_535 if layout.color_map.max() > 255 else 255
    return layout.color_map.T * np.float32(1 / most)


def _lines(
    blocks: NDArray[np.uint8] | Image.Image, layout: Layout, start: int, stop: int
) -> NDArray[np.uint8]:
    """Returns the bytes of some rows of pixels: (rows, tiles across, bytes of a row of a tile).

    Args:
        blocks: of :func:`_blocks`.
        layout: of the file.
        start, stop: the first of the rows, and the one after the last.
    """
    if isinstance(blocks, np.ndarray):
        return _side_by_side(blocks, layout)[start:stop]
    height = blocks.height
    if layout.across == 1:
        return _bytes_of(blocks, start, stop)[:, None]
    if height > layout.across * layout.block_height:  # several rows of small tiles
        return _side_by_side(_bytes_of(blocks, 0, height), layout)[start:stop]
    tiles = range(0, height, layout.block_height)
    return np.stack([_bytes_of(blocks, top + start, top + stop) for top in tiles], axis=1)


def _bytes_of(image: Image.Image, start: int, stop: int) -> NDArray[np.uint8]:
    """Returns rows of a gray picture whose pixels are bytes."""
    part = image.crop((0, start, image.width, stop))
    return np.frombuffer(part.tobytes(), np.uint8).reshape(-1, image.width)


def _side_by_side(rows: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """Returns the bytes of each row of pixels (rows, tiles across, bytes of a row of a tile).

    Args:
        rows: of each block in turn, all its rows.
        layout: of the file.
    """
    if layout.across == 1:
        return rows[:, None]
    grid = rows.reshape(-1, layout.across, layout.block_height, rows.shape[1]).swapaxes(1, 2)
    # One row of tiles, which may be large, is not copied.
    return grid[0] if len(grid) == 1 else grid.reshape(-1, layout.across, rows.shape[1])


def _unpack(lines: NDArray[np.uint8], layout: Layout) -> NDArray[np.integer]:
    """Returns the integers (rows, width of all tiles, samples) of some rows of pixels."""
    packed = lines.reshape(-1, lines.shape[2])
    bits = layout.bits[0]
    samples = 1 if layout.planar else layout.samples
    count = layout.block_width * samples
    values: NDArray[np.integer]
    if bits == 8:
        values = packed
    elif bits == 16:
        values = packed.view(layout.order + "u2").astype(np.uint16)
    elif bits == 12:
        triples = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 3))).astype(np.uint16)
        triples = triples.reshape(len(packed), -1, 3)
        high, middle, low = np.moveaxis(triples, 2, 0)
        pairs = np.stack([high << 4 | middle >> 4, (middle & 15) << 8 | low], axis=2)
        values = pairs.reshape(len(packed), -1)[:, :count]
    else:
        single = np.unpackbits(packed, axis=1, count=count * bits).reshape(-1, count, bits)
        values = np.zeros((len(packed), count), np.uint16)
        for place in range(bits):
            values = (values << 1) | single[:, :, place]
    values = values.reshape(len(packed), layout.block_width, samples)
    if layout.predictor == 2:
        values = np.cumsum(values, axis=1, dtype=values.dtype)
    return values.reshape(len(lines), -1, samples)


def _blocks(
    data: bytes, layout: Layout, plane: int, first: int, last: int
) -> NDArray[np.uint8] | Image.Image:
    """Undoes the compression of the block rows ``first`` to ``last``.

    Returns:
        (rows, bytes of a row), of each block in turn, all its rows; or the same as a gray picture.
    """
    start = plane * layout.across * layout.down
    blocks = slice(start + first * layout.across, start + last * layout.across)
    height = (last - first) * layout.across * layout.block_height
    if not layout.tiled:
        height = min(last * layout.block_height, layout.height) - first * layout.block_height
    width = _row_bytes(layout)
    if layout.compression == _NONE:
        return _uncompressed(data, layout, blocks, (height, width))
    if layout.compression == _WEBP:
        return _webp(data, layout, blocks, (height, width))
    gray = {
        256: (width, "I"),
        257: (height, "I"),
        258: (8, "H"),
        259: (layout.compression, "H"),
        262: (_BLACK_IS_ZERO, "H"),
        266: (2 if layout.reversed_bits else 1, "H"),
        278: (layout.block_height, "I"),
    }
    strips = [_block(data, layout, index) for index in range(len(layout.offsets))[blocks]]
    return _decode(_tiff("<", gray, {}, strips, tiled=False))


def _block(data: bytes, layout: Layout, index: int) -> memoryview:
    start = int(layout.offsets[index])
    end = None if layout.sizes is None else start + int(layout.sizes[index])
    return memoryview(data)[start:end]


def _uncompressed(
    data: bytes, layout: Layout, blocks: slice, shape: tuple[int, int]
) -> NDArray[np.uint8]:
    offsets = layout.offsets[blocks]
    size = layout.block_height * shape[1]
    whole = shape[0] * shape[1]
    last = whole - size * (len(offsets) - 1)  # the last strip may be lower
    if offsets[-1] + last > len(data) or (offsets[:-1] + size > len(data)).any():
        raise damaged("its pixels lie outside the file")
    if layout.sizes is not None and len(layout.offsets) > 1:
        sizes = layout.sizes[blocks]
        if sizes[-1] < last or (sizes[:-1] < size).any():
            raise damaged("a strip or tile is too small")
    if (np.diff(offsets) == size).all():
        rows = np.frombuffer(data, np.uint8, whole, int(offsets[0]))
    else:
        starts = [*map(int, offsets)]
        ends = [start + size for start in starts[:-1]] + [starts[-1] + last]
        parts = [memoryview(data)[a:b] for a, b in zip(starts, ends, strict=True)]
        rows = np.frombuffer(b"".join(parts), np.uint8)
    return (_REVERSED[rows] if layout.reversed_bits else rows).reshape(shape)


def _webp(data: bytes, layout: Layout, blocks: slice, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Each strip or tile is a WebP file."""
    rows = np.empty((shape[0], layout.block_width, layout.samples), np.uint8)
    top = 0
    for index in range(len(layout.offsets))[blocks]:
        height = min(layout.block_height, shape[0] - top)
        image = WebPImagePlugin.WebPImageFile(io.BytesIO(_block(data, layout, index)))
        if image.size != (layout.block_width, height):
            raise damaged("a strip or tile has another size")
        part = np.asarray(image.convert("RGB" if layout.samples == 3 else "RGBA"))
        rows[top : top + height] = part
        top += height
    return rows.reshape(shape)


def _with_tags(data: bytes, layout: Layout) -> bytes:
    """Returns a file with the strips or tiles and all that a decoder of samples needs."""
    assert layout.photometric is not None
    tags = {
        256: (layout.width, "I"),
        257: (layout.height, "I"),
        258: (layout.bits[0], "H"),
        259: (layout.compression, "H"),
        262: (layout.photometric, "H"),
        266: (2 if layout.reversed_bits else 1, "H"),
        277: (layout.samples, "H"),
    }
    if layout.tiled:
        tags |= {322: (layout.block_width, "I"), 323: (layout.block_height, "I")}
    else:
        tags[278] = (layout.block_height, "I")
    blocks: list[bytes | memoryview]
    blocks = [_block(data, layout, index) for index in range(len(layout.offsets))]
    if layout.compression == _NONE:
        # Pillow reads uncompressed YCbCr without libtiff and without its subsampling.
        tags[259] = (8, "H")
        blocks = [zlib.compress(block, 0) for block in blocks]
    return _tiff(layout.order, tags, layout.codec, blocks, tiled=layout.tiled)


def _tiff(
    order: str,
    numbers: dict[int, tuple[int, str]],
    values: dict[int, Value],
    blocks: Sequence[bytes | memoryview],
    *,
    tiled: bool,
) -> bytes:
    """Writes a TIFF file with the given strips or tiles."""
    sizes = [len(block) for block in blocks]
    offsets = [8, *itertools.accumulate(sizes, initial=8)][1:-1]
    tags = dict(values)
    for tag, (number, kind) in numbers.items():
        tags[tag] = Value(3 if kind == "H" else 4, 1, struct.pack(order + kind, number))
    for tag, column in zip((324, 325) if tiled else (273, 279), (offsets, sizes), strict=True):
        tags[tag] = Value(4, len(column), struct.pack(f"{order}{len(column)}I", *column))
    outside = b""
    start = 8 + sum(sizes)
    entries = struct.pack(order + "H", len(tags))
    for tag, value in sorted(tags.items()):
        field = bytes(value.raw)
        if len(field) > 4:
            field, outside = (
                struct.pack(order + "I", start + len(outside)),
                outside + field + b"\0" * (len(field) % 2),
            )
        entries += struct.pack(order + "HHI4s", tag, value.type, value.count, field)
    header = (b"II" if order == "<" else b"MM") + struct.pack(
        order + "HI", 42, start + len(outside)
    )
    return b"".join([header, *blocks, outside, entries, bytes(4)])


def _decode(file: bytes) -> Image.Image:
    """Decodes a file written by :func:`_tiff`, whose size has been checked."""
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(file))
    # Given its memory, Pillow does not check the size: it would count bytes as pixels.
    image.im = Image.new(image.mode, image.size).im
    image.load()
    return image
