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
from dataclasses import dataclass
from typing import Final

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
_SECONDS_PER_BYTE: Final = 10e-9
_TRANSPOSED: Final = frozenset(range(2, 9))
_RGB_BYTES: Final = 4  # Pillow's bytes of a pixel


@dataclass(frozen=True, slots=True)
class DecodeCost:
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
    least = DecodeCost(0, _BASE_SECONDS + _SECONDS_PER_BYTE * len(data), _BASE_BYTES + len(data))
    try:
        # What decides lies at the start.
        kind = identify(data[:1024])
        if kind is None or not kind.read:
            return least
        cost = _COSTS[kind.name](data, shortest)
    except Exception:  # the readers raise it too, and as early
        return least
    return DecodeCost(
        cost.pixels, least.seconds + cost.seconds, _BASE_BYTES + 2 * len(data) + cost.bytes
    )


def reduction(size: tuple[int, int], shortest: int) -> int:
    """Returns the factor by which to reduce a JPEG; only exact divisors, to avoid a shift."""
    for factor in (8, 4, 2):
        if shortest and min(size) >= factor * shortest and not any(n % factor for n in size):
            return factor
    return 1


def _of_pixels(
    size: tuple[int, int], nanoseconds: float, bytes_each: float, *, orientation: int = 1
) -> DecodeCost:
    """Returns the cost of a decoder that needs the same for each pixel."""
    pixels = size[0] * size[1]
    if orientation in _TRANSPOSED:
        bytes_each = max(bytes_each, 2 * _RGB_BYTES)
        nanoseconds += 4
    return DecodeCost(pixels, pixels * nanoseconds * 1e-9, int(pixels * bytes_each))


def _jpeg(data: bytes, shortest: int) -> DecodeCost:
    header = jpeg_header.read_header(data)
    header.check()
    width, height = header.size
    factor = reduction(header.size, shortest) if header.reducible else 1
    across, down = (max(side) for side in zip(*header.factors, strict=True))
    # Samples of all channels: the library decodes whole blocks of all of them.
    blocks = sum(
        (-(-width * h // (8 * across)) + 1) * (-(-height * v // (8 * down)) + 1)
        for h, v in header.factors
    )
    pixels = width * height // factor**2
    output = {1: 5, 3: 4, 4: 8}[header.channels] * pixels
    if header.orientation in _TRANSPOSED:
        output = max(output, 2 * _RGB_BYTES * pixels)
    coefficients = 0
    scans = 0.0
    if header.several_scans:
        channels = jpeg_header.scan_channels(data, header.scan)
        scans = sum(min(max(n, 1), header.channels) for n in channels) / header.channels
        coefficients = 128 * blocks
    # Each block is transformed, each scan visits each block, and each bit is decoded.
    seconds = 250e-9 * blocks + 8e-9 * pixels * header.channels + 300e-9 * blocks * scans
    seconds += len(data) * (150e-9 if header.arithmetic else 60e-9)
    return DecodeCost(width * height, seconds, output + coefficients)


def _png(data: bytes, shortest: int) -> DecodeCost:
    found = png_chunks.survey(data)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[found.color]
    samples = found.size[0] * found.size[1] * channels * found.depth / 8
    deep = found.depth == 16
    plain = _of_pixels(found.size, 150 if deep else 30, 16 if deep else 9)
    seconds = plain.seconds + 15e-9 * samples + 4e-6 * found.chunks
    if found.clear and found.color == png_chunks.RGB:
        seconds += 100e-9 * plain.pixels
    return DecodeCost(plain.pixels, seconds, plain.bytes)


def _webp(data: bytes, shortest: int) -> DecodeCost:
    header = webp_chunks.read_header(data)
    size = max(header.size, header.inner, key=lambda side: side[0] * side[1])
    return _of_pixels(size, 60, 16, orientation=header.orientation)


def _gif(data: bytes, shortest: int) -> DecodeCost:
    return _of_pixels(gif_blocks.read_header(data).size, 20, 9)


def _bmp(data: bytes, shortest: int) -> DecodeCost:
    header = bmp_header.read_header(data)
    if header.compression in (bmp_header.RLE4, bmp_header.RLE8):
        return _of_pixels(header.size, 60, 9)
    return _of_pixels(header.size, 40, 8)


def _tiff(data: bytes, shortest: int) -> DecodeCost:
    page = tiff_pages.choose_page(data)
    samples = page.number(tiff_pages.SAMPLES, 1)
    bits = page.number(tiff_pages.BITS, 1)
    size = page.number(tiff_pages.WIDTH, 0), page.number(tiff_pages.HEIGHT, 0)
    each = samples * bits / 8
    return _of_pixels(size, 60 + 40 * each, 8 + 2 * each)


def _heif(data: bytes, shortest: int) -> DecodeCost:
    contents = heif_boxes.read_contents(data)
    return _of_pixels(contents.largest, 200, 16)


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
