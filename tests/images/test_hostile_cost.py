"""Elements that hostile files repeat: time grows with their number, up to a bound, as estimated."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from benchmarks import hostile_pictures as hostile
from multigrain.errors import MultigrainError
from multigrain.images.cost import decode_cost
from multigrain.images.decode import decode_image
from multigrain.images.limits import DEFAULT_LIMITS
from tests.images.isobmff import box
from tests.images.test_heif import MANY
from tests.images.test_hostile import many_tags

ROOT: Final = Path(__file__).parents[2]


def outcome(data: bytes) -> str:
    try:
        decode_image(data)
    except MultigrainError as error:
        return error.kind.name
    return "decoded"


def animation(frames: int) -> bytes:
    """A WebP with many frames."""
    still = hostile.webp(8)[12:]
    frame = bytes(6) + (7).to_bytes(3, "little") * 2 + bytes(4) + still
    chunk = b"ANMF" + len(frame).to_bytes(4, "little") + frame
    canvas = (7).to_bytes(3, "little") * 2
    head = b"VP8X" + (10).to_bytes(4, "little") + b"\x02\0\0\0" + canvas
    body = b"WEBP" + head + b"ANIM" + (6).to_bytes(4, "little") + bytes(6) + chunk * frames
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def empty_chunks(count: int, name: bytes = b"tEXt") -> bytes:
    return hostile.png(8, 0, 8, before=hostile.chunk(name, b"") * count)


def old_exif(orientation: int, *, distance: int = 8) -> bytes:
    """A text chunk with EXIF, as ImageMagick wrote it.

    Args:
        orientation: of EXIF.
        distance: from the start of EXIF to its entries, in bytes.
    """
    head = b"MM\0*" + distance.to_bytes(4, "big") + bytes(distance - 8)
    exif = head + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    text = b"\nexif\n%8d\n%s\n" % (len(exif), exif.hex().encode())
    return hostile.chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


def test_exif_without_effect_does_not_hide_a_rotation() -> None:
    none = hostile.chunk(b"eXIf", b"MM\0*" + bytes(30))
    damaged = none[:-1] + bytes([none[-1] ^ 1])
    plain = decode_cost(hostile.png(8, 2, 500, before=old_exif(6)))
    for before in (none, damaged, damaged + none):
        cost = decode_cost(hostile.png(8, 2, 500, before=before + old_exif(6)))
        assert cost.bytes >= plain.bytes


@pytest.mark.parametrize("distance", [8, 100_000])
def test_a_png_that_is_rotated_by_exif_in_a_text_needs_more_memory(distance: int) -> None:
    upright, rotated = (
        decode_cost(hostile.png(8, 2, 500, before=old_exif(number, distance=distance)))
        for number in (1, 6)
    )
    plain = decode_cost(hostile.png(8, 2, 500))
    assert rotated.bytes - plain.bytes > 4 * 500 * 500 - 2**20 // 4
    assert upright.bytes <= rotated.bytes


def test_exif_in_a_text_of_nothing_but_spaces_takes_no_time() -> None:
    spaces = zlib.compress(b"\nexif\n 1\n" + b" " * 2**20)
    body = b"Raw profile type exif\0\0" + spaces
    file = hostile.png(8, 0, 8, before=hostile.chunk(b"zTXt", body))
    plain = hostile.png(8, 0, 8)
    for function in (decode_cost, outcome):
        first, second = (
            min(cpu_seconds(function, data) for _ in range(3)) for data in (plain, file)
        )
        assert second < 30 * max(first, 0.005)


# Element -> a file with so many of them.
REPEATED: Final[dict[str, Callable[[int], bytes]]] = {
    "scans that refine": lambda n: hostile.jpeg_of_scans(n, 160),
    "scans": lambda n: hostile.jpeg_of_scans(n, 160, refine=False),
    "EXIF segments": lambda n: hostile.jpeg_of_segments(0xE1, b"Exif\0\0MM\0*" + bytes(30), 44 * n),
    "comments of a JPEG": lambda n: hostile.jpeg_of_segments(0xFE, b"", 4 * n),
    "large comments of a JPEG": lambda n: hostile.jpeg_of_segments(0xFE, bytes(500), 504 * n),
    "ICC segments": lambda n: hostile.jpeg_of_segments(0xE2, b"ICC_PROFILE\0\1\1", 18 * n),
    "Adobe segments": lambda n: hostile.jpeg_of_segments(0xEE, b"Adobe" + bytes(7), 16 * n),
    "tables of a JPEG": lambda n: hostile.jpeg_of_segments(
        0xDB, bytes(1) + bytes([1]) * 64, 69 * n
    ),
    "restart markers": lambda n: hostile.small_jpeg()[:2] + b"\xff\xd0" * n,
    "fill bytes": hostile.jpeg_of_fill,
    "text chunks": empty_chunks,
    "IDAT chunks": lambda n: empty_chunks(n, b"IDAT"),
    "EXIF chunks": lambda n: empty_chunks(n, b"eXIf"),
    "frames of a WebP": animation,
    "extensions of a GIF": hostile.gif_of_extensions,
    "runs of a BMP": lambda n: hostile.bmp_of_runs(n, 1000),
    "boxes": lambda n: box(b"ftyp", b"avif\0\0\0\0avifmif1") + box(b"free", b"") * n,
}


@pytest.mark.parametrize("element", REPEATED)
def test_time_grows_with_the_number_of_elements_at_most(element: str) -> None:
    """Quadratic code would take a hundred times as long for ten times as many."""
    few, many = REPEATED[element](5_000), REPEATED[element](50_000)
    for function in (decode_image, decode_cost):
        first, second = (min(cpu_seconds(function, data) for _ in range(2)) for data in (few, many))
        assert second < 30 * max(first, 0.005)


def cpu_seconds(function: Callable[[bytes], object], data: bytes) -> float:
    start = time.process_time()
    with contextlib.suppress(MultigrainError):
        function(data)
    return time.process_time() - start


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (lambda: hostile.jpeg_of_scans(9000), "IMAGE_FORMAT"),
        (lambda: hostile.jpeg_of_scans(200), "IMAGE_TOO_LARGE"),
        (lambda: REPEATED["EXIF segments"](70_000), "IMAGE_FORMAT"),
        (lambda: hostile.jpeg_of_fill(2**20), "IMAGE_UNREADABLE"),
        (lambda: hostile.webp(16383), "IMAGE_TOO_LARGE"),
        (hostile.webp, "IMAGE_TOO_LARGE"),
        (lambda: hostile.png(16, 6), "IMAGE_TOO_LARGE"),
        (lambda: hostile.png(8, 6, 6000, interlaced=True), "IMAGE_TOO_LARGE"),
        (lambda: empty_chunks(80_000), "IMAGE_FORMAT"),
        (lambda: hostile.bmp_of_runs(4_000_000), "IMAGE_TOO_LARGE"),
    ],
    ids=[
        *("9000 scans", "200 scans", "EXIF", "fill", "WebP 268 MP", "WebP 50 MP", "16-bit PNG"),
        *("interlaced PNG", "chunks", "runs"),
    ],
)
def test_small_files_that_ask_for_much_are_refused_before_they_are_decoded(
    data: Callable[[], bytes], expected: str
) -> None:
    file = data()
    start = time.process_time()
    assert outcome(file) == expected
    assert time.process_time() - start < 1  # decoding any of them takes several seconds


def test_the_cost_of_hostile_headers_is_found_quickly() -> None:
    """The daemon finds it on its event loop."""
    for file in (many_tags(), *MANY.values(), *(make(50_000) for make in REPEATED.values())):
        assert cpu_seconds(decode_cost, file) < 0.5


# Files of all kinds that are decoded: the estimates must not be far too low.
MEASURED: Final[dict[str, Callable[[], bytes]]] = {
    "JPEG scans": lambda: hostile.jpeg_of_scans(20, 3200),
    "WebP": lambda: hostile.webp(3000),
    "PNG 1 bit": lambda: hostile.png(1, 0, 4000),
    "PNG of narrow rows": lambda: hostile.png(1, 0, 1, height=4_000_000),
    "PNG palette of narrow rows": lambda: hostile.png(8, 3, 3, height=2_000_000),
    "PNG of one row": lambda: hostile.png(8, 2, 15_000_000, height=1),
    "PNG RGB, rotated": lambda: hostile.png(8, 2, 4000, before=old_exif(6)),
    "PNG palette": lambda: hostile.png(8, 3, 4000, before=hostile.chunk(b"tRNS", bytes(256))),
    "PNG RGB": lambda: hostile.png(8, 2, 3000),
    "PNG transparent color": lambda: hostile.png(
        8, 2, 3000, before=hostile.chunk(b"tRNS", bytes(6))
    ),
    "PNG gray and alpha": lambda: hostile.png(8, 4, 3000),
    "PNG RGBA": lambda: hostile.png(8, 6, 3000),
    "PNG 16-bit gray": lambda: hostile.png(16, 0, 3000),
    "PNG 16-bit gray and alpha": lambda: hostile.png(16, 4, 3000),
    "PNG 16-bit RGB": lambda: hostile.png(16, 2, 3000),
    "PNG 16-bit RGBA": lambda: hostile.png(16, 6, 2500),
    "PNG interlaced RGBA": lambda: hostile.png(8, 6, 3000, interlaced=True),
    "PNG interlaced 16-bit RGBA": lambda: hostile.png(16, 6, 2000, interlaced=True),
    "GIF": lambda: hostile.gif(4000),
    "BMP runs": lambda: hostile.bmp_of_runs(200_000, 3000),
    "TIFF": lambda: hostile.tiff(2500),
    "TIFF LZMA": lambda: hostile.tiff(2500, "lzma"),
    "AVIF": lambda: hostile.avif(2500),
}


@pytest.mark.process
def test_estimates_are_not_far_below_what_decoding_takes(tmp_path: Path) -> None:
    paths = []
    for number, make in enumerate(MEASURED.values()):
        paths.append(tmp_path / f"{number}")
        paths[-1].write_bytes(make())
    command = [sys.executable, "-m", "tests.images.peak_memory", *map(str, paths)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    low = []
    for name, path, line in zip(MEASURED, paths, run.stdout.splitlines(), strict=True):
        grown, ended, seconds = line.split()
        cost = decode_cost(path.read_bytes())
        print(
            f"{name}: {float(seconds):.2f} of {cost.seconds:.2f} s, "
            f"{int(grown) / 2**20:.0f} of {cost.bytes / 2**20:.0f} MiB"
        )
        assert ended == "decoded", name
        assert cost.bytes <= DEFAULT_LIMITS.max_decode_bytes
        # Memory is the same everywhere. Machines differ in speed, and this one may be busy.
        if int(grown) > 1.15 * cost.bytes or float(seconds) > 4 * cost.seconds:
            low.append(name)
    assert low == []
