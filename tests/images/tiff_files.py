"""Writes TIFF files for tests: any sample size, kind, plane, byte order and lossless compression.

Independent of the package. :mod:`tifffile` refuses compressed samples of other sizes than 8 and 16
bits, so the samples are packed here, from the definitions of TIFF 6.0.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8

# Compression -> function that encodes a strip or tile.
CODECS: Final[dict[int, Callable[[bytes], bytes | bytearray]]] = {
    1: lambda data: data,
    5: imagecodecs.lzw_encode,
    8: zlib.compress,
    32946: zlib.compress,
    32773: imagecodecs.packbits_encode,
    34925: lambda data: lzma.compress(data, preset=0),
    50000: imagecodecs.zstd_encode,
}
_TYPES: Final = {"B": 1, "s": 2, "H": 3, "I": 4, "Q": 16, "f": 11}


@dataclass(frozen=True)
class Kind:
    """How :func:`write` stores samples.

    Args:
        photometric, compression, predictor, orientation: values of the tags.
        bits: of a sample.
        order: byte order, "<" or ">".
        tile: (height, width), or None for strips of ``rows`` rows.
        planar: whether each sample has strips or tiles of its own.
        extra: values of the ExtraSamples tag, or None.
        sample_format: value of the tag, or None.
        reversed_bits: whether bytes are written with their lowest bit first.
        big: BigTIFF.
        tags: more tags, as (format of one element, values); None leaves a tag out.
    """

    photometric: int | None = BLACK_IS_ZERO
    bits: int = 8
    order: Literal["<", ">"] = "<"
    compression: int = 1
    tile: tuple[int, int] | None = None
    rows: int = 5
    planar: bool = False
    extra: tuple[int, ...] | None = None
    predictor: int = 1
    sample_format: int | None = None
    orientation: int | None = None
    reversed_bits: bool = False
    big: bool = False
    tags: Mapping[int, tuple[str, Any] | None] = field(default_factory=dict)


def write(samples: NDArray[Any], kind: Kind) -> bytes:
    """Writes a file with one page.

    Args:
        samples: (H, W, samples per pixel): integers below 2**bits, or floating-point numbers.
        kind: how to store them.
    """
    height, width, count = samples.shape
    blocks = [bytes(CODECS[kind.compression](block)) for block in _blocks(samples, kind)]
    if kind.reversed_bits:
        blocks = [_reverse(block) for block in blocks]
    start = 16 if kind.big else 8
    offsets = [start + sum(map(len, blocks[:index])) for index in range(len(blocks))]
    sizes = [len(block) for block in blocks]
    tags: dict[int, tuple[str, Any] | None] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [kind.bits] * count),
        259: ("H", [kind.compression]),
        277: ("H", [count]),
        284: ("H", [2 if kind.planar else 1]),
    }
    if kind.photometric is not None:
        tags[262] = ("H", [kind.photometric])
    if kind.tile:
        tags |= {322: ("I", [kind.tile[1]]), 323: ("I", [kind.tile[0]])}
        tags |= {324: ("I", offsets), 325: ("I", sizes)}
    else:
        tags |= {273: ("I", offsets), 278: ("I", [kind.rows]), 279: ("I", sizes)}
    if kind.reversed_bits:
        tags[266] = ("H", [2])
    if kind.orientation is not None:
        tags[274] = ("H", [kind.orientation])
    if kind.predictor != 1:
        tags[317] = ("H", [kind.predictor])
    if kind.extra is not None:
        tags[338] = ("H", kind.extra)
    if kind.sample_format is not None:
        tags[339] = ("H", [kind.sample_format] * count)
    tags |= kind.tags
    return join(b"".join(blocks), [tags], kind.order, kind.big)


def join(
    body: bytes,
    pages: list[dict[int, tuple[str, Any] | None]],
    order: str = "<",
    big: bool = False,
) -> bytes:
    """Writes a file of strips or tiles and the tags of its pages.

    Args:
        body: what stands after the header of 8 bytes, or 16 of BigTIFF.
        pages: of each page its tags, as :class:`Kind` describes.
        order, big: as of :class:`Kind`.
    """
    start = 16 if big else 8
    word, most = ("Q", 8) if big else ("I", 4)
    body += b"\0" * (len(body) % 2)
    result = b""
    pointers = []
    for tags in pages:
        entries = outside = b""
        present = {tag: value for tag, value in sorted(tags.items()) if value is not None}
        for tag, (code, values) in present.items():
            raw = values if code == "s" else struct.pack(f"{order}{len(values)}{code}", *values)
            if len(raw) > most:
                raw = raw + b"\0" * (len(raw) % 2)
                place = start + len(body) + len(result) + len(outside)
                outside, raw = outside + raw, struct.pack(order + word, place)
            entries += struct.pack(order + "HH" + word, tag, _TYPES[code], len(values))
            entries += raw.ljust(most, b"\0")
        result += outside
        pointers.append(start + len(body) + len(result))
        result += struct.pack(order + ("Q" if big else "H"), len(present)) + entries
        result += struct.pack(order + word, 0)
    # Each page points to the next one.
    for index in range(len(pages) - 1):
        count = sum(value is not None for value in pages[index].values())
        at = pointers[index] - start - len(body) + (8 + 20 * count if big else 2 + 12 * count)
        pointer = struct.pack(order + word, pointers[index + 1])
        result = result[:at] + pointer + result[at + len(pointer) :]
    mark = b"II" if order == "<" else b"MM"
    if big:
        return mark + struct.pack(order + "HHHQ", 43, 8, 0, pointers[0]) + body + result
    return mark + struct.pack(order + "HI", 42, pointers[0]) + body + result


def _blocks(samples: NDArray[Any], kind: Kind) -> Iterator[bytes]:
    planes = np.moveaxis(samples, 2, 0)[:, :, :, None] if kind.planar else samples[None]
    height, width = samples.shape[:2]
    down, across = kind.tile or (kind.rows, width)
    for plane in planes:
        for top in range(0, height, down):
            for left in range(0, width, across):
                block = plane[top : top + down, left : left + across]
                if kind.tile:
                    missing = (down - block.shape[0], across - block.shape[1])
                    block = np.pad(block, ((0, missing[0]), (0, missing[1]), (0, 0)), "edge")
                yield _pack(_differences(block, kind), kind)


def _differences(block: NDArray[Any], kind: Kind) -> NDArray[Any]:
    if kind.predictor != 2:
        return block
    result = block.copy()
    result[:, 1:] -= block[:, :-1]  # modulo 2**bits
    return result


def _pack(block: NDArray[Any], kind: Kind) -> bytes:
    if kind.predictor == 3:
        return b"".join(_float_differences(row) for row in block)
    rows = block.reshape(len(block), -1)
    if kind.bits % 8 == 0:
        return rows.astype(rows.dtype.newbyteorder(kind.order)).tobytes()
    places = np.arange(kind.bits - 1, -1, -1)
    bits = (rows[:, :, None] >> places & 1).astype(np.uint8)
    return np.packbits(bits.reshape(len(rows), -1), axis=1).tobytes()


def _float_differences(row: NDArray[Any]) -> bytes:
    """Adobe's predictor 3: highest bytes first, and differences of bytes."""
    count = row.shape[1]
    planes = row.astype(row.dtype.newbyteorder(">")).reshape(-1).view(np.uint8)
    planes = planes.reshape(-1, row.dtype.itemsize).T.reshape(-1)
    result = planes.copy()
    result[count:] -= planes[:-count]
    return result.tobytes()


def _reverse(data: bytes) -> bytes:
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, 8)
    return np.packbits(bits[:, ::-1]).tobytes()


def expected(samples: NDArray[Any], kind: Kind, table: NDArray[Any] | None = None) -> NDArray[Any]:
    """Returns what the samples mean: (H, W, 3) from 0 to 255, on white, in the order stored.

    Args:
        samples: as of :func:`write`.
        kind: as of :func:`write`.
        table: the palette's 16-bit values (3, 2**bits).
    """
    values = samples / (2**kind.bits - 1)
    colors = values[:, :, :1]
    if kind.photometric == WHITE_IS_ZERO:
        colors = 1 - colors
    elif kind.photometric == RGB:
        colors = values[:, :, :3]
    elif kind.photometric == CMYK:
        colors = (1 - values[:, :, :3]) * (1 - values[:, :, 3:4])
    elif kind.photometric == PALETTE:
        assert table is not None
        colors = table.T[samples[:, :, 0]] / 65535
    extra = kind.extra or ()
    for index, meaning in enumerate(extra, samples.shape[2] - len(extra)):
        alpha = values[:, :, index : index + 1]
        if meaning == 1:
            colors = np.minimum(1, colors + 1 - alpha)
        elif meaning == 2:
            colors = colors * alpha + 1 - alpha
    result: NDArray[Any] = np.broadcast_to(colors, (*samples.shape[:2], 3)) * 255
    return result
