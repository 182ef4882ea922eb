"""What decoding an image will take, by its header alone: pixels, processor time and memory.

The daemon calls this for every image before it accepts it: standard library only, no exceptions,
some ten microseconds for an ordinary file, and for any other a time bounded by the limits of the
headers. The headers are read by the functions that the decoders use.

The numbers were measured with hostile files of each kind on one core of an Intel Xeon of 2023, and
are upper estimates: the slowest contents of that many pixels and bytes. Tests compare them with the
decoders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from multigrain.images import (
    bmp_header,
    gif_blocks,
    heif_boxes,
    jpeg_header,
    png_chunks,
    tiff_pages,
    webp_chunks,
)
from multigrain.images.formats import identify

# Of any file: its header, its copies and the result.
_BASE_SECONDS: Final = 0.002
_BASE_BYTES: Final = 4 * 2**20
# Bytes that are searched or copied, but not decoded.
_SECONDS_PER_BYTE: Final = 3e-9
# Of a row, however narrow: a pointer and padding in each of two images, and calls of the decoder.
_SECONDS_PER_ROW: Final = 120e-9
_BYTES_PER_ROW: Final = 24
_TRANSPOSED: Final = frozenset(range(2, 9))
_RGB_BYTES: Final = 4  # Pillow's bytes of a pixel
_LZMA, _JPEG, _YCBCR = 34925, 7, 6  # of TIFF


class DecodeCost(NamedTuple):
    """What decoding one image takes.

    Attributes:
        pixels: that the decoder computes.
        seconds: of one processor core.
        bytes: by which memory grows at its peak, without the file itself.
    """

    pixels: int
    seconds: float
    bytes: int


def decode_cost(data: bytes, shortest: int = 0) -> DecodeCost:
    """Estimates what ``decode_image(data, shortest=shortest)`` takes; does not decode.

    Of bytes that are no image, or a damaged one, it is the cost of finding that out.

    Args:
        data: the encoded file.
        shortest: least length in pixels of the shorter side, as of ``decode_image``.
    """
    seconds = _BASE_SECONDS + _SECONDS_PER_BYTE * len(data)
    least = DecodeCost(0, seconds, _BASE_BYTES + len(data))
    try:
        # What decides lies at the start.
        kind = identify(data[:1024])
        if kind is None or not kind.read:
            return least
        cost = _COSTS[kind.name](data, shortest)
    except Exception:  # the readers raise it too, and as early
        return least
    return DecodeCost(cost.pixels, seconds + cost.seconds, _BASE_BYTES + cost.bytes)


def reduction(size: tuple[int, int], shortest: int) -> int:
    """Returns the factor by which to reduce a JPEG; only exact divisors, to avoid a shift."""
    for factor in (8, 4, 2):
        if shortest and min(size) >= factor * shortest and not any(n % factor for n in size):
            return factor
    return 1


def _of_pixels(
    size: tuple[int, int], nanoseconds: float, bytes_each: float, *, orientation: int = 1
) -> DecodeCost:
    """Returns the cost of a decoder that needs the same for each pixel, and for each row."""
    pixels = size[0] * size[1]
    if orientation in _TRANSPOSED:
        bytes_each = max(bytes_each, 2 * _RGB_BYTES)
        nanoseconds += 5
    seconds = pixels * nanoseconds * 1e-9 + size[1] * _SECONDS_PER_ROW
    return DecodeCost(pixels, seconds, int(pixels * bytes_each) + size[1] * _BYTES_PER_ROW)


def _plus(cost: DecodeCost, seconds: float = 0.0, memory: float = 0.0) -> DecodeCost:
    return DecodeCost(cost.pixels, cost.seconds + seconds, cost.bytes + int(memory))


def _jpeg(data: bytes, shortest: int) -> DecodeCost:
    header = jpeg_header.read_header(data)
    header.check()
    width, height = header.size
    factor = reduction(header.size, shortest) if header.reducible else 1
    across, down = jpeg_header.finest(header.factors)
    # The library decodes whole blocks of all channels.
    each = [
        (-(-width * h // (8 * across)) + 1) * (-(-height * v // (8 * down)) + 1)
        for h, v in header.factors
    ]
    blocks = sum(each)
    pixels = width * height // factor**2
    memory = (8 if header.channels == 4 or header.lossless else 4) * pixels
    visited = blocks
    if header.several_scans:
        # Each scan visits all blocks of its channels, which are kept.
        counts = jpeg_header.scan_channels(data, header.scan)
        visited = sum(blocks if n != 1 else max(each) for n in counts)
        memory += 128 * blocks
    if header.orientation in _TRANSPOSED:
        memory = max(memory, 2 * _RGB_BYTES * pixels)
    if header.arithmetic:  # a byte can stand for many blocks
        seconds = 1500e-9 * visited + 60e-9 * len(data)
    elif header.lossless:
        seconds = 3000e-9 * visited + 60e-9 * len(data)
    else:
        seconds = 100e-9 * visited + 30e-9 * len(data)
    seconds += 120e-9 * blocks + 3e-9 * pixels * header.channels
    return DecodeCost(width * height, seconds, memory)


# Color type -> nanoseconds of a pixel with 8 bits a sample or fewer, and with 16.
_PNG_NANOSECONDS: Final = {0: (16, 60), 2: (22, 110), 3: (16, 0), 4: (40, 90), 6: (50, 160)}
_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _png(data: bytes, shortest: int) -> DecodeCost:
    found = png_chunks.survey(data)
    deep = found.depth == 16
    color = found.color
    nanoseconds = float(_PNG_NANOSECONDS[color][deep])
    clear_color = found.clear and color == png_chunks.RGB
    # The filters are undone for each byte.
    nanoseconds += 3 * _PNG_CHANNELS[color] * found.depth / 8 + (25 if clear_color else 0)
    plain = not deep and color not in (png_chunks.GRAY_ALPHA, png_chunks.RGBA) and not clear_color
    if plain:
        memory = 4.0 if color == png_chunks.RGB else 5.0
    elif found.interlaced:
        memory = 24.0 if deep else 12.0
    else:
        memory = 4.0
    if found.interlaced:
        nanoseconds *= 1.5
    cost = _of_pixels(found.size, nanoseconds, memory, orientation=found.orientation)
    band = min(cost.pixels, max(found.size[0], 2**17))
    seconds = 4e-6 * found.chunks + 8e-9 * len(data)
    # Pillow's decoder holds two rows as they are stored.
    stored = 2 * found.size[0] * _PNG_CHANNELS[color] * found.depth // 8
    return _plus(cost, seconds, stored if plain else 64 * band)


def _webp(data: bytes, shortest: int) -> DecodeCost:
    header = webp_chunks.read_header(data)
    size = max(header.size, header.inner, key=lambda side: side[0] * side[1])
    lossless = header.name == webp_chunks.LOSSLESS
    cost = _of_pixels(size, 55 if lossless else 40, 12.1, orientation=header.orientation)
    seconds = (15e-9 if lossless else 80e-9) * len(header.pixels)
    if header.alpha is not None:
        seconds += 40e-9 * cost.pixels + 15e-9 * len(header.alpha)
    return _plus(cost, seconds, 2 * len(data))


def _gif(data: bytes, shortest: int) -> DecodeCost:
    return _plus(_of_pixels(gif_blocks.read_header(data).size, 20, 5), 40e-9 * len(data))


def _bmp(data: bytes, shortest: int) -> DecodeCost:
    header = bmp_header.read_header(data)
    if header.compression in (bmp_header.RLE4, bmp_header.RLE8):
        # Two bytes are a code, which is read by a loop of Python.
        return _plus(_of_pixels(header.size, 25, 5), 1e-6 * len(data))
    if header.masks is not None:
        return _plus(_of_pixels(header.size, 120, 4), memory=len(data) + 64 * 2**17)
    return _plus(_of_pixels(header.size, 15, 5), memory=len(data))


def _tiff(data: bytes, shortest: int) -> DecodeCost:
    page = tiff_pages.choose_page(data)
    samples = page.number(tiff_pages.SAMPLES, 1)
    bits = page.number(tiff_pages.BITS, 1)
    width, height = page.number(tiff_pages.WIDTH, 0), page.number(tiff_pages.HEIGHT, 0)
    compression = page.number(tiff_pages.COMPRESSION, 1)
    each = max(1.0, samples * bits / 8)
    # A block is decoded as a whole, and the library has it twice.
    tile = page.number(tiff_pages.TILE_WIDTH, 0), page.number(tiff_pages.TILE_HEIGHT, 0)
    if all(tile) and tiff_pages.STRIP_OFFSETS not in page.values:
        across, down = -(-width // tile[0]), -(-height // tile[1])
        blocks, block = across * down, across * tile[0] * tile[1]
        width, height = across * tile[0], down * tile[1]
    else:
        rows = min(page.number(tiff_pages.ROWS_PER_STRIP, height) or height, height)
        blocks, block = -(-height // max(rows, 1)), width * rows
    direct = bits == 8 and samples in (1, 3)
    nanoseconds = 40.0 if direct else 40.0 + 20 * samples
    nanoseconds += (40 if compression == _LZMA else 6) * each
    orientation = page.number(tiff_pages.ORIENTATION, 1)
    cost = _of_pixels((width, height), nanoseconds, 4, orientation=orientation)
    whole = compression == _JPEG or page.number(tiff_pages.PHOTOMETRIC, 0) == _YCBCR
    stored = 0 if compression == 1 and not whole else 2 * each * block
    copies = 1 if compression == 1 and not whole else 3
    memory = copies * len(data) + 16 * 2**20 + 100 * width + (8 * cost.pixels if whole else 0)
    if stored > 4 * cost.pixels:  # the result is made after the largest block was decoded
        stored -= 4 * min(cost.pixels, block)
    return _plus(cost, 20e-6 * blocks + 20e-9 * len(data), memory + stored)


def _heif(data: bytes, shortest: int) -> DecodeCost:
    contents = heif_boxes.read_contents(data)
    return _plus(
        _of_pixels(contents.largest, 70, 12.1, orientation=2), 150e-9 * len(data), 2 * len(data)
    )


_COSTS: Final[dict[str, Callable[[bytes, int], DecodeCost]]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "BMP": _bmp,
    "GIF": _gif,
    "TIFF": _tiff,
    "AVIF": _heif,
    "HEIC": _heif,
}
