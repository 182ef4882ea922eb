"""BMP: every header and kind of pixels by the structures of Windows and OS/2."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.decode import decode
from tests.images.files import encode, noise, reference

WINDOWS = (40, 52, 56, 108, 124)
OS2 = (16, 20, 36, 64)
RGBA8 = (0xFF0000, 0x00FF00, 0x0000FF, 0xFF000000)
FIELDS = {
    16: [(0x7C00, 0x3E0, 0x1F), (0xF800, 0x7E0, 0x1F), (0xF00, 0xF0, 0xF), (0xE0, 0x1C, 0x3)],
    32: [RGBA8[:3], (0xFF, 0xFF00, 0xFF0000), (0x3FF00000, 0xFFC00, 0x3FF), (1, 2, 4)],
}


def bmp(
    pixels: bytes,
    size: tuple[int, int],
    bits: int,
    *,
    header: int = 40,
    compression: int = 0,
    masks: tuple[int, ...] = (),
    palette: NDArray[np.uint8] | None = None,
    top_down: bool = False,
    gap: int = 0,
) -> bytes:
    """A file of stored rows (padded, in the order of the file)."""
    width, height = size
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        height = -height if top_down else height
        used = 0 if palette is None else len(palette)
        info = struct.pack(
            "<IiiHHIIiiII", header, width, height, 1, bits, compression, 0, 0, 0, used, 0
        )
        if header > 40:
            info += b"".join(struct.pack("<I", mask) for mask in masks)
        info = info[:header].ljust(header, b"\0")
    if header == 40:
        info += b"".join(struct.pack("<I", mask) for mask in masks)
    if palette is not None:
        for red, green, blue in palette.tolist():
            info += bytes((blue, green, red)) + (b"" if header == 12 else b"\0")
    body = info + bytes(gap) + pixels
    return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, 14 + len(info) + gap) + body


def stored(values: NDArray[Any], bits: int, *, top_down: bool = False) -> bytes:
    """Rows of pixel values (H, W), or of (H, W, 3) bytes in the order B, G, R."""
    rows = values if top_down else values[::-1]
    out = b""
    for row in rows:
        if bits < 8:
            digits = ((row[:, None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8)
            line = np.packbits(digits.reshape(-1)).tobytes()
        else:
            line = row.astype({16: "<u2", 32: "<u4"}.get(bits, np.uint8)).tobytes()
        out += line + bytes(-len(line) % 4)
    return out


def random_values(size: tuple[int, int], bits: int) -> NDArray[np.uint32]:
    random = np.random.default_rng(bits)
    return random.integers(0, 1 << bits, (size[1], size[0]), dtype=np.uint32)


def channels(values: NDArray[np.uint32], masks: tuple[int, ...]) -> NDArray[np.float64]:
    """The value of each mask's bits, in 0..1."""
    return np.stack([((values & m).astype(np.float64) / m) for m in masks], axis=2)


SIZES = [(1, 1), (3, 2), (7, 5), (33, 9)]


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("header", [12, *OS2, *WINDOWS])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 24])
def test_palettes_and_24_bits_with_every_header(header: int, bits: int, top_down: bool) -> None:
    top_down = top_down and header != 12
    for size in SIZES:
        palette = None
        if bits == 24:
            expected = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
            pixels = stored(expected[:, :, ::-1].reshape(size[1], -1), 24, top_down=top_down)
        else:
            values = random_values(size, bits)
            palette = np.random.default_rng(2).integers(0, 256, (1 << bits, 3), dtype=np.uint8)
            expected = palette[values]
            pixels = stored(values, bits, top_down=top_down)
        masks = RGBA8 if header > 64 else ()
        data = bmp(
            pixels, size, bits, header=header, palette=palette, masks=masks, top_down=top_down
        )
        np.testing.assert_array_equal(decode(data), expected)
        # The last row may lack its padding, and pixels may begin later.
        whole = bmp(
            pixels,
            size,
            bits,
            header=header,
            palette=palette,
            masks=masks,
            top_down=top_down,
            gap=6,
        )
        np.testing.assert_array_equal(decode(whole), expected)
        used = (size[0] * bits + 7) // 8
        missing = -used % 4
        np.testing.assert_array_equal(decode(data[: len(data) - missing]), expected)


@pytest.mark.parametrize("header", WINDOWS)
@pytest.mark.parametrize(
    ("bits", "masks"), [(bits, masks) for bits, every in FIELDS.items() for masks in every]
)
def test_bit_fields(header: int, bits: int, masks: tuple[int, ...]) -> None:
    for size in SIZES:
        values = random_values(size, bits)
        fields = (*masks, 0) if header >= 56 else masks
        data = bmp(stored(values, bits), size, bits, header=header, compression=3, masks=fields)
        np.testing.assert_allclose(decode(data), channels(values, masks) * 255, atol=0.501)


@pytest.mark.parametrize("header", WINDOWS)
@pytest.mark.parametrize("bits", [16, 32])
def test_pixels_without_bit_fields(header: int, bits: int) -> None:
    """555 and 888; the masks of a newer header and the fourth byte have no meaning."""
    values = random_values((9, 4), bits)
    masks = (0xF0, 0xF00, 0xF, 0xF000) if header > 40 else ()
    data = bmp(stored(values, bits), (9, 4), bits, header=header, masks=masks)
    expected = channels(values, FIELDS[bits][0]) * 255
    np.testing.assert_allclose(decode(data), expected, atol=0.501)


@pytest.mark.parametrize(("header", "compression"), [(56, 3), (108, 3), (124, 3), (40, 6)])
@pytest.mark.parametrize(
    ("bits", "masks"),
    [(32, RGBA8), (16, (0x7C00, 0x3E0, 0x1F, 0x8000)), (16, (0xF00, 0xF0, 0xF, 0xF000))],
)
def test_alpha_is_composited_on_white_unless_all_of_it_is_0(
    header: int, compression: int, bits: int, masks: tuple[int, ...]
) -> None:
    values = random_values((9, 4), bits)
    color, alpha = channels(values, masks[:3]), channels(values, masks[3:])
    data = bmp(
        stored(values, bits), (9, 4), bits, header=header, compression=compression, masks=masks
    )
    np.testing.assert_allclose(decode(data), (color * alpha + 1 - alpha) * 255, atol=1.01)
    values &= ~np.uint32(masks[3])
    data = bmp(
        stored(values, bits), (9, 4), bits, header=header, compression=compression, masks=masks
    )
    np.testing.assert_allclose(decode(data), color * 255, atol=0.501)


def runs(rows: NDArray[np.uint8], bits: int, *, literal: bool) -> bytes:
    """Run-length encoding of indices, in the order of the file."""
    out = b""
    for row in rows.tolist():
        if literal and len(row) >= 3:
            if bits == 8:
                body = bytes(row)
            else:
                padded = [*row, 0]
                body = bytes(padded[i] << 4 | padded[i + 1] for i in range(0, len(row), 2))
            out += bytes((0, len(row))) + body + bytes(len(body) & 1)
        else:
            for value, group in itertools.groupby(row):
                pixel = value if bits == 8 else value << 4 | value
                out += bytes((len(list(group)), pixel))
        out += b"\0\0"
    return out + b"\0\1"


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize(("bits", "compression"), [(8, 1), (4, 2)])
@pytest.mark.parametrize("header", [40, 64, 124])
def test_run_lengths(header: int, bits: int, compression: int, literal: bool) -> None:
    palette = np.random.default_rng(2).integers(0, 256, (1 << bits, 3), dtype=np.uint8)
    for size in SIZES:
        values = (random_values(size, bits) // 3 * 3).astype(np.uint8)
        pixels = runs(values[::-1], bits, literal=literal)
        masks = RGBA8 if header > 64 else ()
        data = bmp(
            pixels, size, bits, header=header, compression=compression, palette=palette, masks=masks
        )
        np.testing.assert_array_equal(decode(data), palette[values])
        np.testing.assert_array_equal(decode(data[:-2]), palette[values])  # no end mark


def test_run_lengths_with_jumps_alternating_pixels_and_long_runs() -> None:
    palette = np.arange(768, dtype=np.uint8).reshape(256, 3)
    pixels = bytes((2, 5, 0, 2, 1, 1, 1, 7, 0, 0, 9, 3, 0, 0, 0, 1))
    data = bmp(pixels, (4, 4), 8, compression=1, palette=palette)
    rows = [[5, 5, 0, 0], [0, 0, 0, 7], [3, 3, 3, 3], [0, 0, 0, 0]]
    np.testing.assert_array_equal(decode(data), palette[np.array(rows[::-1])])
    data = bmp(bytes((5, 0x12, 0, 0, 0, 1)), (5, 1), 4, compression=2, palette=palette[:16])
    np.testing.assert_array_equal(decode(data), palette[[[1, 2, 1, 2, 1]]])


def test_a_file_without_its_first_header_is_read() -> None:
    data = encode(noise(9, 4), "DIB")
    np.testing.assert_array_equal(decode(data), np.asarray(noise(9, 4)))


def failure(data: bytes) -> MultigrainError:
    with pytest.raises(MultigrainError) as caught:
        decode(data)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "bits", "name"),
    [
        ({"compression": 4}, 0, "a BMP that holds a JPEG"),
        ({"compression": 5}, 0, "a BMP that holds a PNG"),
        ({"compression": 11}, 32, "CMYK"),
        ({"compression": 9}, 24, "compression 9"),
        ({"compression": 3, "header": 64}, 1, "OS/2 bitmap with fax"),
        ({"compression": 4, "header": 64}, 24, "OS/2 bitmap with run-length"),
        ({"header": 80}, 24, "header of 80 bytes"),
        ({}, 64, "64 bits"),
    ],
)
def test_other_kinds_are_named(changes: dict[str, Any], bits: int, name: str) -> None:
    error = failure(bmp(bytes(400), (4, 4), bits, **changes))
    assert error.kind is ErrorKind.IMAGE_FORMAT
    assert name in error.message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bmp(bytes(400), (-4, 4), 24), "width is -4"),
        (bmp(bytes(400), (4, 4), 5), "5 bits a pixel"),
        (bmp(bytes(400), (4, 4), 24, compression=1), "24 bits a pixel"),
        (bmp(bytes(40), (4, 4), 24), "before its last pixel"),
        (bmp(bytes((9,)), (4, 4), 8, compression=1, palette=np.zeros((4, 3), np.uint8)), "last"),
        (
            bmp(bytes((0, 9, 1)), (4, 4), 8, compression=1, palette=np.zeros((4, 3), np.uint8)),
            "last",
        ),
        (
            bmp(b"", (4, 4), 32, compression=3, masks=(0xFF, 0xF0, 0xF000)),
            "overlap or have gaps): save",
        ),
        (bmp(b"", (4, 4), 32, compression=3, masks=(0xF0F, 0xF0, 0xF000)), "gaps"),
        (bmp(b"", (4, 4), 16, compression=3, masks=(0xF0000, 0xF0, 0xF00)), "overlap"),
        (bmp(b"", (4, 4), 16, compression=3, masks=(0, 0, 0)), "empty"),
        (bmp(b"", (4, 4), 8)[:60], "palette"),
        (bmp(b"", (4, 4), 24)[:20], "incomplete"),
    ],
)
def test_damage_is_described(data: bytes, reason: str) -> None:
    error = failure(data)
    assert error.kind is ErrorKind.IMAGE_UNREADABLE
    assert reason in error.message


@pytest.mark.parametrize("code", [b"\1\5", b"\0\2\0\0", b"\0\3abc\0"])
def test_run_lengths_that_add_no_pixel_end(code: bytes) -> None:
    palette = np.zeros((256, 3), np.uint8)
    data = bmp(code * 200_000, (4, 4), 8, compression=1, palette=palette)
    assert failure(data).kind is ErrorKind.IMAGE_UNREADABLE


@pytest.mark.process
def test_a_sample_agrees_with_imagemagick(tmp_path: Path) -> None:
    """Not the alpha of an empty bit field, which only newer versions ignore."""
    files = {}
    for header, bits in itertools.product((12, 40, 108, 124), (1, 4, 8, 24)):
        masks = RGBA8 if header > 64 else ()
        palette = None
        values: NDArray[Any] = random_values((13, 6), 8 if bits == 24 else bits)
        if bits == 24:
            values = np.random.default_rng(3).integers(0, 256, (6, 39))
        else:
            palette = np.random.default_rng(2).integers(0, 256, (1 << bits, 3), dtype=np.uint8)
        files[f"{header}, {bits} bits"] = bmp(
            stored(values, bits), (13, 6), bits, header=header, palette=palette, masks=masks
        )
    for header, bits in itertools.product((40, 108, 124), (16, 32)):
        values = random_values((13, 6), bits)
        alpha = (0,) if header > 64 else ()
        for masks in FIELDS[bits][:2]:
            files[f"{header}, masks {masks}"] = bmp(
                stored(values, bits),
                (13, 6),
                bits,
                header=header,
                compression=3,
                masks=(*masks, *alpha),
            )
    for header in (108, 124):
        files[f"{header}, alpha"] = bmp(
            stored(random_values((13, 6), 32), 32),
            (13, 6),
            32,
            header=header,
            compression=3,
            masks=RGBA8,
        )
    for name, data in files.items():
        np.testing.assert_allclose(
            decode(data).astype(int), reference(data, "bmp", tmp_path), atol=1, err_msg=name
        )
