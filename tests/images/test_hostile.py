"""Small files that ask for much memory, and whole pictures of the kinds that take the most."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from PIL import Image

from tests.images.files import corners, encode
from tests.images.isobmff import with_size
from tests.images.test_heif import MANY, avif, heic
from tests.images.test_tiff import YCBCR_TAGS, strips
from tests.images.tiff_files import RGB, Kind, join, write

ROOT: Final = Path(__file__).parents[2]
MIB: Final = 2**20
FORMAT, UNREADABLE, LARGE = "IMAGE_FORMAT", "IMAGE_UNREADABLE", "IMAGE_TOO_LARGE"


def rgba16(width: int, height: int, tile: tuple[int, int] | None) -> bytes:
    kind = Kind(RGB, 16, compression=8, rows=height, tile=tile, extra=(2,))
    return write(np.zeros((height, width, 4), np.uint16), kind)


def one_tile(side: int) -> bytes:
    """A picture of one pixel in a tile of RGBA with 16 bits."""
    body = zlib.compress(bytes(8 * side * side))
    return join(
        body,
        [
            {
                **{256: ("I", [1]), 257: ("I", [1]), 258: ("H", [16] * 4), 259: ("H", [8])},
                **{262: ("H", [2]), 277: ("H", [4]), 322: ("I", [side]), 323: ("I", [side])},
                **{324: ("I", [8]), 325: ("I", [len(body)]), 338: ("H", [2])},
            }
        ],
    )


def many_tags() -> bytes:
    """Pages that are marked as reduced copies, so that a larger one is looked for in all."""
    known = {254: 1, 256: 2, 257: 2, 258: 8, 262: 1, 273: 8, 278: 2, 279: 4}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in known.items())
    entries += struct.pack("<HHII", 40_000, 4, 1, 0) * 60_000
    pages = [struct.pack("<H", len(entries) // 12) + entries] * 30
    starts = (8 + (index + 1) * (len(pages[0]) + 4) for index in range(30))
    chain = (part + struct.pack("<I", start) for part, start in zip(pages, starts, strict=True))
    return struct.pack("<2sHI", b"II", 42, 8) + b"".join(chain)


def huge(encoder: Callable[..., bytes]) -> bytes:
    return with_size(encoder(corners(64, 48)), 30_000, 30_000)


# Name -> (file, outcome, most bytes that memory may grow by).
FILES: Final[dict[str, tuple[Callable[[], bytes], str, int]]] = {
    "TIFF: each strip of YCbCr is the file": (
        lambda: strips(100, bytes(4 * MIB), [4 * MIB] * 100, **YCBCR_TAGS),
        UNREADABLE,
        16 * MIB,
    ),
    "TIFF: each strip is the file": (
        lambda: strips(100, bytes(4 * MIB), [4 * MIB] * 100),
        UNREADABLE,
        16 * MIB,
    ),
    "TIFF: sizes of 63 bits": (
        lambda: strips(100, bytes(4 * MIB), [2**63 - 1] * 100),
        UNREADABLE,
        16 * MIB,
    ),
    "TIFF: a million strips share a kilobyte": (
        lambda: strips(2**20, bytes(1024), [1024] * 2**20),
        UNREADABLE,
        128 * MIB,
    ),
    "TIFF: a large tile around a pixel": (lambda: one_tile(4096), FORMAT, 16 * MIB),
    "TIFF: pages of many tags": (many_tags, "decoded", 16 * MIB),
    # 16 bytes a pixel while the compression is undone, and 3 of the result.
    "TIFF: one strip": (
        lambda: rgba16(2000, 1500, None),
        "decoded",
        17 * 2000 * 1500 + 16 * MIB,
    ),
    "TIFF: tiles that reach out of the picture": (
        lambda: rgba16(2100, 2100, (2048, 2048)),
        "decoded",
        17 * 4096 * 2048 + 3 * 2100 * 2100 + 24 * MIB,
    ),
    "PNG: colors and alpha": (
        lambda: encode(Image.new("RGBA", (2000, 1500), (9, 9, 9, 9)), "PNG"),
        "decoded",
        10 * 2000 * 1500 + 8 * MIB,
    ),
    "AVIF: a picture of 900 megapixels": (partial(huge, avif), FORMAT, 16 * MIB),
    "HEIC: a picture of 900 megapixels": (partial(huge, heic), LARGE, 16 * MIB),
    **{
        f"AVIF: many boxes in {name}": (partial(MANY.__getitem__, name), FORMAT, MIB * 16)
        for name in MANY
    },
}


@pytest.mark.process
def test_no_file_takes_more_memory_than_its_pixels_need(tmp_path: Path) -> None:
    paths = []
    for index, (make, _, _) in enumerate(FILES.values()):
        paths.append(tmp_path / f"{index}")
        paths[-1].write_bytes(make())
    command = [sys.executable, "-m", "tests.images.peak_memory", *map(str, paths)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    assert len(lines) == len(FILES)
    for name, (grown, outcome, _) in zip(FILES, lines, strict=True):
        print(f"{name}: {outcome}, {int(grown) / MIB:.0f} MiB")
    for (name, (_, expected, most)), (grown, outcome, _) in zip(FILES.items(), lines, strict=True):
        assert outcome == expected, name
        assert int(grown) <= most, f"{name}: {int(grown) / MIB:.0f} of {most / MIB:.0f} MiB"
