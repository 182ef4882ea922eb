"""WebP: stills, alpha, animations, and metadata that must not matter."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.decode import decode, image_size
from tests.images.files import corners, encode, noise, reference


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], 12
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        found.append((data[position : position + 4], data[position + 8 : position + 8 + size]))
        position += 8 + size + (size & 1)
    return found


def riff(*parts: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        name + len(body).to_bytes(4, "little") + body + bytes(len(body) & 1) for name, body in parts
    )
    return b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body


def extended(size: tuple[int, int], flags: int = 0x3C) -> tuple[bytes, bytes]:
    return b"VP8X", bytes((flags, 0, 0, 0)) + b"".join((n - 1).to_bytes(3, "little") for n in size)


def translucent(seed: int = 0) -> Image.Image:
    image = noise(33, 21, seed).convert("RGBA")
    image.putalpha(noise(33, 21, seed + 1).convert("L"))
    return image


OPTIONS = [{"lossless": True, "exact": True}, {"quality": 80}]


@pytest.mark.parametrize("options", OPTIONS)
def test_stills_are_what_pillow_reads(options: dict[str, object]) -> None:
    for image in (noise(33, 21), translucent()):
        data = encode(image, "WEBP", **options)
        plain = Image.open(io.BytesIO(data)).convert("RGBA")
        white = Image.new("RGBA", plain.size, "white")
        expected = np.asarray(Image.alpha_composite(white, plain).convert("RGB")).astype(int)
        np.testing.assert_allclose(decode(data), expected, atol=1)
        assert image_size(data) == (33, 21)


METADATA = {
    "long ICC": (b"ICCP", bytes(3 * 2**20)),
    "empty ICC": (b"ICCP", b""),
    "damaged EXIF": (b"EXIF", b"II*\0\xff\xff\xff\xff"),
    "long EXIF": (b"EXIF", bytes(2 * 2**20 + 1)),
    "long XMP": (b"XMP ", b"x" * (2 * 2**20)),
    "unknown": (b"abcd", b"123"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_does_not_refuse_a_picture(name: str) -> None:
    for image in (noise(33, 21), translucent()):
        plain = encode(image, "WEBP", quality=80)
        parts = [part for part in chunks(plain) if part[0] != b"VP8X"]
        for order in ([METADATA[name], *parts], [*parts, METADATA[name]]):
            data = riff(extended((33, 21)), *order)
            np.testing.assert_array_equal(decode(data), decode(plain))
    # Cut off within metadata behind the pixels, and with a wrong size of the whole.
    data = riff(extended((33, 21)), *parts, METADATA[name])
    np.testing.assert_array_equal(decode(data[:-2]), decode(plain))
    np.testing.assert_array_equal(decode(data[:4] + b"\xff\xff\xff\x7f" + data[8:]), decode(plain))


def frame(image: Image.Image, place: tuple[int, int]) -> tuple[bytes, bytes]:
    inner = encode(image, "WEBP", lossless=True, exact=True)
    parts = [part for part in chunks(inner) if part[0] != b"VP8X"]
    head = b"".join(
        n.to_bytes(3, "little")
        for n in (place[0] // 2, place[1] // 2, image.width - 1, image.height - 1, 100)
    )
    return b"ANMF", head + b"\0" + riff(*parts)[12:]


def test_the_first_frame_lies_on_a_white_canvas() -> None:
    first, second = noise(10, 6), noise(20, 16, 1)
    animation = b"ANIM", bytes((0, 0, 255, 255, 0, 0))  # its background color does not matter
    whole = (extended((20, 16), 0x02), animation, frame(first, (4, 8)), frame(second, (0, 0)))
    data = riff(*whole)
    expected = np.full((16, 20, 3), 255)
    expected[8:14, 4:14] = np.asarray(first)
    np.testing.assert_array_equal(decode(data), expected)
    assert image_size(data) == (20, 16)
    # Later frames may be missing or damaged.
    np.testing.assert_array_equal(decode(data[: -len(whole[3][1]) // 2]), expected)
    np.testing.assert_array_equal(decode(riff(*whole[:3], (b"ANMF", b"\xff" * 30))), expected)


def test_a_translucent_first_frame_is_composited() -> None:
    image = translucent()
    data = riff(extended((40, 30), 0x12), (b"ANIM", bytes(6)), frame(image, (2, 4)))
    expected = np.full((30, 40, 3), 255)
    expected[4:25, 2:35] = decode(encode(image, "WEBP", lossless=True, exact=True))
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("block", ["EXIF", "EXIF with a head"])
def test_the_orientation_is_read(block: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes()
    part = {
        "EXIF": (b"EXIF", body.removeprefix(b"Exif\0\0")),
        "EXIF with a head": (b"EXIF", body),
    }[block]
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(np.asarray(corners()), 1)))
    parts = [p for p in chunks(encode(stored, "WEBP", lossless=True)) if p[0] != b"VP8X"]
    data = riff(extended(stored.size), *parts, part)
    np.testing.assert_array_equal(decode(data), np.asarray(corners()))
    assert image_size(data) == (40, 20)


def test_an_orientation_in_xmp_is_not_applied() -> None:
    """As in browsers, ImageMagick and libvips."""
    stored = encode(corners(), "WEBP", lossless=True)
    xmp = b"XMP ", b"<tiff:Orientation>6</tiff:Orientation>"
    parts = [part for part in chunks(stored) if part[0] != b"VP8X"]
    data = riff(extended((40, 20), 0x04), *parts, xmp)
    np.testing.assert_array_equal(decode(data), np.asarray(corners()))


PIXELS = chunks(encode(noise(33, 21), "WEBP"))[0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (riff(), "no pixels"),
        (riff(extended((33, 21))), "no pixels"),
        (riff(PIXELS)[:-9], "within its pixels"),
        (riff((b"VP8 ", b"x" * 50)), "no header"),
        (riff((b"VP8L", b"x" * 50)), "no header"),
        (riff((b"VP8L", b"\x2f" + bytes(9))), "cannot be decoded"),
        (riff(extended((9, 9), 2), frame(noise(10, 6), (0, 0))), "outside"),
        (riff(extended((9, 9), 2), (b"ANMF", bytes(16))), "incomplete"),
    ],
)
def test_damage_is_described(data: bytes, reason: str) -> None:
    with pytest.raises(MultigrainError, match=reason) as caught:
        decode(data)
    assert caught.value.kind is ErrorKind.IMAGE_UNREADABLE


@pytest.mark.process
def test_a_sample_agrees_with_imagemagick(tmp_path: Path) -> None:
    for image in (noise(33, 21), translucent(), translucent(5)):
        for options in OPTIONS:
            data = encode(image, "WEBP", **options)
            np.testing.assert_allclose(
                decode(data).astype(int), reference(data, "webp", tmp_path), atol=1
            )
