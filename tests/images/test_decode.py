"""Decoding images and the errors of invalid ones."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images import jpeg_header, png_chunks
from multigrain.images.decode import decode
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits
from tests.images.files import corners, encode, noise, stored_as
from tests.images.lossless_jpeg import segment
from tests.images.pngs import chunk

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def png_header(width: int, height: int) -> bytes:
    """A PNG with a size in its header and no pixels."""
    chunks = b""
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ):
        crc = zlib.crc32(kind + body)
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
    return b"\x89PNG\r\n\x1a\n" + chunks


def failure(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> MultigrainError:
    with pytest.raises(MultigrainError) as caught:
        decode(data, limits)
    return caught.value


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_decoded(form: str) -> None:
    image = noise(32, 24)
    pixels = decode(encode(image, form))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (24, 32, 3)
    difference = np.abs(pixels.astype(int) - np.asarray(image).astype(int)).mean()
    assert difference < (10 if form in ("JPEG", "WEBP", "GIF") else 1e-9)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(form: str, orientation: int) -> None:
    """The stored pixels are the upright ones after the inverse operation."""
    upright = np.asarray(corners())
    stored = stored_as(upright, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(stored), form, exif=exif)
    pixels = decode(data).astype(int)
    assert pixels.shape == upright.shape
    # Far from the edges between the colors, where JPEG would blur.
    for row, column in ((3, 5), (3, 35), (16, 5), (16, 35)):
        assert np.abs(pixels[row, column] - upright[row, column]).max() < 40


def test_damaged_exif_is_ignored() -> None:
    data = encode(
        noise(20, 10), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12"
    )
    assert decode(data).shape == (10, 20, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_only_the_first_exif_block_is_searched(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may have thousands, and each search takes time."""
    exif = b"II*\x00\x08\x00\x00\x00\x00\x00"  # no entries
    data = encode(noise(20, 10), form)
    if form == "JPEG":
        block = segment(0xE1, b"Exif\x00\x00" + exif)
        data = data[:2] + block * 1000 + data[2:]
    else:
        data = data[:33] + chunk(b"eXIf", exif) * 1000 + data[33:]
    calls: list[bytes] = []

    def search(block: bytes) -> int:
        calls.append(block)
        return 0

    monkeypatch.setattr({"JPEG": jpeg_header, "PNG": png_chunks}[form], "exif_orientation", search)
    assert decode(data).shape == (10, 20, 3)
    # For the estimate of the cost, and for the picture.
    assert calls == [exif] * 2


def test_gray_bilevel_and_palette_images_become_rgb() -> None:
    gray = noise(8, 8).convert("L")
    expected = np.repeat(np.asarray(gray)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode(encode(gray, "PNG")), expected)
    bilevel = gray.convert("1")
    assert set(np.unique(decode(encode(bilevel, "PNG")))) <= {0, 255}
    palette = corners().quantize(4)
    np.testing.assert_array_equal(decode(encode(palette, "PNG")), np.asarray(corners()))


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    expected = np.rint(values / 65535 * 255).astype(np.uint8)
    for form in ("PNG", "TIFF"):
        pixels = decode(encode(Image.fromarray(values), form))
        np.testing.assert_array_equal(pixels[:, :, 0], expected)
        np.testing.assert_array_equal(pixels[:, :, 2], expected)


def test_sixteen_bit_color_is_scaled() -> None:
    row = b"\x00" + struct.pack(">6H", 65535, 32768, 0, 256, 257, 65280)
    body = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", body), (b"IDAT", zlib.compress(row)), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + kind + content
        data += struct.pack(">I", zlib.crc32(kind + content))
    expected = [[[255, 128, 0], [1, 1, 254]]]
    np.testing.assert_allclose(decode(data), expected, atol=1)


def test_cmyk_becomes_rgb() -> None:
    data = encode(corners(64, 32).convert("CMYK"), "JPEG", quality=95)
    pixels = decode(data).astype(int)
    for (row, column), color in {
        (8, 16): (255, 0, 0),
        (8, 48): (0, 255, 0),
        (24, 16): (0, 0, 255),
        (24, 48): (255, 255, 255),
    }.items():
        assert np.abs(pixels[row, column] - color).max() < 30


@pytest.mark.parametrize(
    ("mode", "form"),
    [*((m, f) for m in ("RGBA", "LA") for f in ("PNG", "WEBP", "TIFF")), ("PA", "PNG")],
)
def test_transparency_is_composited_on_white(mode: str, form: str) -> None:
    image = Image.new("RGBA", (4, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    data = encode(
        image.quantize(8) if mode == "PA" else image.convert(mode),
        form,
        **({"lossless": True, "exact": True} if form == "WEBP" else {}),
    )
    np.testing.assert_allclose(decode(data)[0, :, 0], [0, 255, 127, 0], atol=1)


def test_a_transparent_color_becomes_white() -> None:
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (1, 2, 3))
    data = encode(image, "PNG", transparency=(1, 2, 3))
    np.testing.assert_array_equal(decode(data), [[[10, 20, 30], [255, 255, 255]]])


def test_a_transparent_16_bit_gray_becomes_white() -> None:
    values = np.array([[0, 300, 301]], np.uint16)
    data = encode(Image.fromarray(values), "PNG", transparency=300)
    assert decode(data)[0, :, 0].tolist() == [0, 255, 1]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animations_first_frame_is_used(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode(data)[0, 0], [255, 0, 0])


def test_an_image_of_one_pixel_is_decoded() -> None:
    np.testing.assert_array_equal(
        decode(encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")), [[[1, 2, 3]]]
    )


def test_an_empty_file_is_unreadable() -> None:
    error = failure(b"")
    assert error.kind is ErrorKind.IMAGE_UNREADABLE
    assert "0 bytes" in error.message


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_truncated_file_is_unreadable(form: str, share: float) -> None:
    data = encode(noise(64, 64), form)
    error = failure(data[: int(len(data) * share)])
    assert error.kind is ErrorKind.IMAGE_UNREADABLE
    assert "whole file" in error.message or "save" in error.message
    assert "BytesIO" not in error.message


@pytest.mark.parametrize(
    "data",
    [
        b"hello, I am a text",
        b"%PDF-1.7 not an image",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        bytes(1000),
        b"P6 1 1 255 abc",  # a format that Pillow supports, but not this package
    ],
)
def test_bytes_that_are_no_image_list_the_formats(data: bytes) -> None:
    error = failure(data)
    assert error.kind is ErrorKind.IMAGE_FORMAT
    assert "JPEG" in error.message


def test_an_image_with_float_pixels_is_refused() -> None:
    error = failure(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))
    assert error.kind is ErrorKind.IMAGE_FORMAT
    assert "8 or 16 bits" in error.message


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_000, 10_000), (2**31 - 1, 1)])
def test_a_huge_image_is_refused_by_its_header(size: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = failure(png_header(*size))
    assert error.kind is ErrorKind.IMAGE_TOO_LARGE
    assert "50000000" in error.message
    assert f"{size[0]} x {size[1]} pixels" in error.message
    assert "scale it down" in error.message


def test_limits_are_inclusive() -> None:
    data = encode(noise(10, 10), "PNG")
    assert decode(data, ImageLimits(max_bytes=len(data), max_pixels=100)).shape == (10, 10, 3)
    for limits in (ImageLimits(max_bytes=len(data) - 1), ImageLimits(max_pixels=99)):
        assert failure(data, limits).kind is ErrorKind.IMAGE_TOO_LARGE


def test_corrupted_bytes_raise_only_multigrain_errors() -> None:
    random = np.random.default_rng(0)
    for form in FORMATS:
        whole = encode(noise(24, 24), form)
        for _ in range(60):
            data = bytearray(whole)
            for place in random.integers(0, len(data), 4):
                data[place] = random.integers(0, 256)
            try:
                decode(bytes(data), ImageLimits(max_pixels=100_000))
            except MultigrainError as error:
                assert error.kind.name.startswith("IMAGE_")  # noqa: PT017


def test_decoding_is_thread_safe() -> None:
    files = [encode(noise(40, 30, seed), form) for seed in range(6) for form in FORMATS]
    alone = [decode(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode, files * 4))
    for index, pixels in enumerate(together):
        np.testing.assert_array_equal(pixels, alone[index % len(files)])


def test_decoding_does_not_change_pillows_settings() -> None:
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    decode(encode(noise(8, 8), "PNG"))
    failure(png_header(20_000, 20_000))
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before
    assert Image.open(io.BytesIO(b"P6 1 1 255 abc")).format == "PPM"
