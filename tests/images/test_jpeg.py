"""JPEG: every kind of frame, color and marker, and reduced decoding of each."""

from __future__ import annotations

import functools
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.decode import decode, decode_image, image_size
from tests.images.files import CASES, corners, encode, noise, reference
from tests.images.lossless_jpeg import lossless, segment

EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
ADOBE = b"Adobe\0\x64\0\0\0\0"


@functools.cache
def kinds() -> dict[str, bytes]:
    """One of each kind that is read, 64 x 48."""
    image = noise(64, 48)
    cmyk = encode(image.convert("CMYK"), "JPEG", quality=95)
    samples = np.asarray(image)
    return {
        "baseline": encode(image, "JPEG"),
        "4:4:4": encode(image, "JPEG", subsampling=0),
        "4:2:2": encode(image, "JPEG", subsampling=1),
        "optimized": encode(image, "JPEG", optimize=True),
        "progressive": encode(image, "JPEG", progressive=True),
        "restarts": encode(image, "JPEG", restart_marker_blocks=1),
        "gray": encode(image.convert("L"), "JPEG"),
        "gray progressive": encode(image.convert("L"), "JPEG", progressive=True),
        "RGB": encode(image, "JPEG", keep_rgb=True, subsampling=0),
        "CMYK": cmyk,
        "CMYK without Adobe's marker": without(cmyk, 0xEE),
        "lossless": lossless(samples),
        "lossless gray": lossless(samples[:, :, :1]),
    }


def without(data: bytes, marker: int) -> bytes:
    """The file without its first segment of a kind."""
    at = data.index(bytes((0xFF, marker)))
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def after_start(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


@pytest.mark.parametrize("name", kinds())
def test_what_is_decoded_whole_is_decoded_for_a_small_model_too(name: str) -> None:
    """At every number of pixels that serving may need, with the same picture at another size."""
    data = kinds()[name]
    whole = decode(data)
    assert whole.shape == (48, 64, 3)
    for shortest in (0, 1, 6, 12, 24, 48, 100):
        image = decode_image(data, shortest=shortest)
        assert image.width * 3 == image.height * 4
        assert shortest == 0 or min(image.size) >= min(shortest, 48)
        enlarged = np.asarray(image.resize((64, 48), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(enlarged - whole).mean() < (14 if image.width < 64 else 0.001)


@pytest.mark.parametrize("name", kinds())
def test_every_kind_is_turned_upright_at_every_size(name: str) -> None:
    data = after_start(kinds()[name], segment(0xE1, EXIF))
    assert image_size(data) == (48, 64)
    np.testing.assert_array_equal(decode(data), np.rot90(decode(kinds()[name]), -1))
    for shortest in (6, 12, 24):
        width, height = decode_image(data, shortest=shortest).size
        assert width * 4 == height * 3


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_samples_are_exact(predictor: int, channels: int) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (9, 13, channels), dtype=np.uint8)
    expected = np.broadcast_to(samples, (9, 13, 3))
    np.testing.assert_array_equal(decode(lossless(samples, predictor)), expected)


JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"


@pytest.mark.parametrize("marker", ["JFIF", "Adobe 0", "Adobe 1"])
def test_the_markers_say_what_the_channels_of_a_lossless_file_are(marker: str) -> None:
    samples = np.asarray(noise(13, 9))
    before = {
        "JFIF": segment(0xE0, JFIF),
        "Adobe 0": segment(0xEE, ADOBE + b"\0"),
        "Adobe 1": segment(0xEE, ADOBE + b"\x01"),
    }[marker]
    expected = samples
    if marker != "Adobe 0":
        expected = np.asarray(Image.frombytes("YCbCr", (13, 9), samples.tobytes()).convert("RGB"))
    for shortest in (0, 1):
        image = decode_image(lossless(samples, 1, before), shortest=shortest)
        np.testing.assert_array_equal(image, expected)


def test_the_case_of_a_lossless_file() -> None:
    data = (CASES / "lossless.jpg").read_bytes()
    expected = decode((CASES / "lossless.expected.png").read_bytes())
    for shortest in (0, 16, 32, 64, 128, 300):
        np.testing.assert_array_equal(decode_image(data, shortest=shortest), expected)


@pytest.mark.parametrize("name", ["arithmetic", "arithmetic-progressive"])
def test_arithmetic_coding_beyond_64_kib(name: str) -> None:
    data = (CASES / f"{name}.jpg").read_bytes()
    assert len(data) > 65536
    source = np.random.default_rng(0).integers(0, 256, (264, 336, 1), dtype=np.uint8)
    assert np.abs(decode(data).astype(int) - source).mean() < 4
    assert decode_image(data, shortest=33).size == (42, 33)


def test_progressive_files_beyond_64_kib() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600), dtype=np.uint8)
    options = {"quality": 90}
    data = encode(Image.fromarray(pixels), "JPEG", progressive=True, **options)
    assert len(data) > 2 * 65536
    plain = encode(Image.fromarray(pixels), "JPEG", **options)
    np.testing.assert_array_equal(decode(data), decode(plain))


@pytest.mark.parametrize(("factors", "reduced"), [(0x41, False), (0x14, False), (0x22, True)])
def test_a_file_with_few_samples_of_color_is_not_reduced(factors: int, reduced: bool) -> None:
    """With a quarter of the columns (4:1:1) an eighth of the size would leave a 32nd."""
    data = bytearray(encode(noise(64, 48), "JPEG", subsampling=2))
    at = data.index(b"\xff\xc0") + 11
    assert data[at] == 0x22
    data[at] = factors
    size = decode_image(bytes(data), shortest=6).size
    assert size == ((8, 6) if reduced else (64, 48))


def frame(marker: int, bits: int = 8, channels: int = 3, size: tuple[int, int] = (9, 9)) -> bytes:
    body = struct.pack(">BHHB", bits, size[1], size[0], channels)
    return segment(marker, body + b"".join(bytes((i, 0x11, 0)) for i in range(channels)))


@pytest.mark.parametrize(
    ("segments", "name"),
    [
        (frame(0xC1, bits=12), "a 12-bit JPEG"),
        (frame(0xC2, bits=12), "a 12-bit JPEG"),
        (frame(0xC9, bits=12), "a 12-bit JPEG"),
        (frame(0xC3, bits=16), "a 16-bit lossless JPEG"),
        (frame(0xC3, bits=12), "a 12-bit lossless JPEG"),
        (frame(0xC5), "a hierarchical JPEG"),
        (frame(0xC6), "a hierarchical JPEG"),
        (frame(0xCD), "a hierarchical JPEG"),
        (segment(0xDE, bytes(6)) + frame(0xC0), "a hierarchical JPEG"),
        (frame(0xCB), "a lossless JPEG with arithmetic coding"),
        (frame(0xF7), "a JPEG-LS image"),
        (frame(0xC0, channels=2), "a JPEG with 2 channels"),
        (frame(0xC0, channels=5), "a JPEG with 5 channels"),
        (frame(0xC0, size=(9, 0)), "height follows its first scan"),
        (frame(0xC0, size=(0, 9)), "0 columns"),
        (frame(0xC0, size=(65501, 9)), "more than 65500 pixels"),
        (frame(0xC0).replace(b"\0\x11\0\x01\x11\0", b"\0\x31\0\x01\x21\0"), "fractional"),
    ],
)
def test_other_kinds_are_named(segments: bytes, name: str) -> None:
    data = b"\xff\xd8" + segments + segment(0xDA, bytes(6)) + bytes(100) + b"\xff\xd9"
    for shortest in (0, 1):
        with pytest.raises(MultigrainError, match=name) as caught:
            decode_image(data, shortest=shortest)
        assert caught.value.kind is ErrorKind.IMAGE_FORMAT
        assert "save" in caught.value.message or "send" in caught.value.message


def test_the_case_of_a_12_bit_file() -> None:
    with pytest.raises(MultigrainError, match="a 12-bit JPEG") as caught:
        decode((CASES / "jpeg12.jpg").read_bytes())
    assert caught.value.kind is ErrorKind.IMAGE_FORMAT


@pytest.mark.parametrize("segments", [b"", segment(0xDB, bytes(67))])
def test_a_file_of_tables_only_is_named(segments: bytes) -> None:
    with pytest.raises(MultigrainError, match="tables only") as caught:
        decode(b"\xff\xd8" + segments + b"\xff\xd9")
    assert caught.value.kind is ErrorKind.IMAGE_FORMAT


def test_an_end_amid_a_file_without_a_picture_is_damage() -> None:
    with pytest.raises(MultigrainError, match="no frame header") as caught:
        decode(b"\xff\xd8\xff\xd9" + kinds()["baseline"][2:])
    assert caught.value.kind is ErrorKind.IMAGE_UNREADABLE


METADATA = {
    "length of 0": b"\xff\xe5\0\0",
    "length of 1": b"\xff\xe1\0\x01",
    "damaged EXIF": segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "EXIF of nothing": segment(0xE1, b"Exif\0"),
    "EXIF with many entries": segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 60000),
    "damaged XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe<"),
    "64 MiB of ICC": segment(0xE2, b"ICC_PROFILE\0\x01\xff" + bytes(65000)) * 255,
    "damaged ICC": segment(0xE2, b"ICC_PROFILE\0\0\0"),
    "damaged MPF": segment(0xE2, b"MPF\0MM\0*\xff\xff\xff\xff"),
    "MPF of no images": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\0\0"),
    "FlashPix": segment(0xE2, b"FPXR\0" + bytes(100)),
    "damaged Photoshop": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\xed\xff\xff"),
    "short Adobe": segment(0xEE, b"Adobe"),
    "short JFIF": segment(0xE0, b"JFIF\0"),
    "comment": segment(0xFE, b"\xff" * 60000),
    "empty": b"".join(segment(0xE0 + i, b"") for i in range(16)),
    "fill bytes": b"\xff" * 1000,
    "unknown": segment(0xE7, bytes(60000)) * 40,
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_does_not_refuse_a_picture(name: str) -> None:
    for kind in ("baseline", "progressive", "gray", "CMYK"):
        data = kinds()[kind]
        changed = after_start(data, METADATA[name])
        np.testing.assert_array_equal(decode(changed), decode(data))
        assert decode_image(changed, shortest=6).size == (8, 6)


def test_what_follows_the_picture_does_not_matter() -> None:
    for rest in (b"\0" * 1000, b"text", kinds()["gray"], b"\xff", b"\xff\xda\0\x08" * 1000):
        for kind in ("baseline", "progressive", "lossless"):
            data = kinds()[kind]
            np.testing.assert_array_equal(decode(data + rest), decode(data))


def test_scans_are_counted_in_the_picture_only() -> None:
    """Not in the payload of segments, nor after the end."""
    data = kinds()["progressive"]
    scan = data.rindex(b"\xff\xda")
    payload = segment(0xE5, b"\xff\xda\xff\xd9" * 1000)
    for changed in (
        after_start(data, payload),
        data[:scan] + payload + data[scan:],
        data + b"\xff\xda" * 10**6,
        data + np.random.default_rng(0).bytes(2**24),
    ):
        np.testing.assert_array_equal(decode(changed), decode(data))


@pytest.mark.parametrize("name", kinds())
def test_a_missing_end_marker_is_named(name: str) -> None:
    """Whether all pixels are there is not known: the library would fill them with gray."""
    data = kinds()[name]
    assert data.endswith(b"\xff\xd9")
    thumbnail = segment(0xE5, data)
    for cut in (data[:-2], data[:-1], data[:-6], after_start(data, thumbnail)[:-2]):
        with pytest.raises(MultigrainError, match="its end marker is missing") as caught:
            decode(cut)
        assert caught.value.kind is ErrorKind.IMAGE_UNREADABLE


def test_an_orientation_in_xmp_is_not_applied() -> None:
    """As in browsers, ImageMagick and libvips."""
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>"
    data = kinds()["baseline"]
    np.testing.assert_array_equal(decode(after_start(data, segment(0xE1, xmp))), decode(data))


def test_the_first_image_of_several_is_read() -> None:
    file = io.BytesIO()
    corners().save(file, "MPO", save_all=True, append_images=[noise(40, 20)], quality=95)
    data = file.getvalue()
    assert np.abs(decode(data).astype(int) - np.asarray(corners())).mean() < 6
    damaged = data.replace(b"MPF\0", b"MPF\xff")
    np.testing.assert_array_equal(decode(damaged), decode(data))


def test_channels_named_r_g_b_are_not_converted() -> None:
    """As in libjpeg, and thus most viewers: without JFIF's and Adobe's marker the names decide."""
    image = noise(64, 48)
    data = without(encode(image, "JPEG", keep_rgb=True, subsampling=0, quality=100), 0xEE)
    assert b"JFIF" not in data
    named = data.index(b"\xff\xc0") + 10
    assert data[named : named + 9 : 3] == b"RGB"
    np.testing.assert_allclose(decode(data).astype(int), np.asarray(image), atol=3)


def test_adobes_transform_decides() -> None:
    """The same file read as RGB (0) and as YCbCr (1)."""
    plain = without(encode(noise(64, 48), "JPEG", subsampling=0, quality=100), 0xE0)
    as_rgb = decode(after_start(plain, segment(0xEE, ADOBE + b"\0")))
    as_ycc = decode(after_start(plain, segment(0xEE, ADOBE + b"\x01")))
    converted = Image.frombytes("YCbCr", (64, 48), as_rgb.tobytes()).convert("RGB")
    np.testing.assert_allclose(as_ycc.astype(int), np.asarray(converted), atol=2)


def test_ink_is_inverted_with_and_without_adobes_marker() -> None:
    ink = Image.new("CMYK", (16, 16), (200, 50, 0, 20))
    ink.paste((0, 200, 50, 0), (8, 0, 16, 16))
    data = encode(ink, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data
    white = 1 - np.array([[200, 50, 0], [0, 200, 50]]) / 255
    expected = white * (1 - np.array([[20], [0]]) / 255) * 255
    for changed in (data, without(data, 0xEE)):
        np.testing.assert_allclose(decode(changed)[3, [2, 13]], expected, atol=4)


YCCK = np.random.default_rng(0).integers(90, 160, (3, 4), dtype=np.uint8)


def ycck() -> bytes:
    """A file of three rows of 16 x 16 pixels with those samples, and Adobe's transform 2."""
    pixels: NDArray[Any] = np.repeat(np.repeat(YCCK, 16, 0)[:, None], 16, 1)
    stored = Image.frombytes("CMYK", (16, 48), (255 - pixels).tobytes())  # Pillow inverts it
    data = without(encode(stored, "JPEG", quality=100, subsampling=0), 0xEE)
    return after_start(data, segment(0xEE, ADOBE + b"\x02"))


def test_inks_stored_as_brightness_and_colors_are_converted() -> None:
    """YCCK: the first three channels, converted to RGB, are the inks (inverted as all are)."""
    inks = Image.frombytes("YCbCr", (1, 3), np.ascontiguousarray(YCCK[:, :3]).tobytes())
    cmy = np.asarray(inks.convert("RGB"))[:, 0].astype(float)
    expected = (255 - cmy) * (YCCK[:, 3:] / 255)
    np.testing.assert_allclose(decode(ycck())[8::16, 8], expected, atol=4)


@pytest.mark.parametrize("progressive", [True, False])
def test_a_file_of_thousands_of_scans_is_refused(progressive: bool) -> None:
    """Each costs the time of a whole decoding."""
    data = encode(noise(64, 48), "JPEG", progressive=progressive)
    scan = data.rindex(b"\xff\xda")
    many = data[:-2] + data[scan:-2] * 3000 + data[-2:]
    with pytest.raises(MultigrainError, match="scans") as caught:
        decode(many)
    assert caught.value.kind is ErrorKind.IMAGE_FORMAT


def test_a_file_of_very_many_segments_is_refused() -> None:
    data = kinds()["progressive"]
    with pytest.raises(MultigrainError, match="segments") as caught:
        decode(data[:-2] + segment(0xE5, b"") * 100_000 + data[-2:])
    assert caught.value.kind is ErrorKind.IMAGE_FORMAT


@pytest.mark.parametrize("name", kinds())
def test_a_truncated_file_is_unreadable(name: str) -> None:
    data = kinds()[name]
    for share in (0.02, 0.3, 0.6, 0.9):
        for shortest in (0, 6):
            with pytest.raises(MultigrainError, match="whole file") as caught:
                decode_image(data[: int(len(data) * share)], shortest=shortest)
            assert caught.value.kind is ErrorKind.IMAGE_UNREADABLE


@pytest.mark.process
def test_a_sample_agrees_with_imagemagick(tmp_path: Path) -> None:
    for name, data in (*kinds().items(), ("YCCK", ycck())):
        if "lossless" not in name:  # older versions do not read them
            difference = decode(data).astype(int) - reference(data, "jpg", tmp_path)
            assert np.abs(difference).max() <= 4, name
            assert np.abs(difference).mean() < 0.5, name
