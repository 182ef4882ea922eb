"""AVIF and HEIC: orientation, transparency, depth, primary pictures, limits, damage."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, _avif

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images import heif, heif_boxes
from multigrain.images.decode import decode, decode_image, image_size
from tests.images.files import corners, encode, noise
from tests.images.isobmff import box, crop, mirror, rotation, with_properties, with_size


def avif(image: Image.Image, **options: Any) -> bytes:
    return encode(image, "AVIF", quality=100, subsampling="4:4:4", speed=9, **options)


def heic(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image = image.copy()
    exif = options.pop("exif", None)
    pillow_heif.from_pillow(image).save(file, quality=-1, chroma=444, exif=exif, **options)
    return file.getvalue()


Encoder = Callable[..., bytes]
ENCODERS = [avif, heic]


@pytest.fixture(params=ENCODERS, ids=["AVIF", "HEIC"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    encode: Encoder = request.param
    return encode


def test_a_picture_is_read(encoder: Encoder) -> None:
    image = noise(65, 48)
    data = encoder(image)
    np.testing.assert_allclose(decode(data).astype(int), np.asarray(image), atol=3)
    assert image_size(data) == (65, 48)
    assert decode_image(data, shortest=4).size == (65, 48)


def test_the_major_brand_may_be_that_of_the_container(encoder: Encoder) -> None:
    data = encoder(noise(64, 48))
    assert data[4:8] == b"ftyp"
    for major in (b"isom", b"mp42", b"mif1"):
        changed = data[:8] + major + data[12:]
        np.testing.assert_array_equal(decode(changed), decode(data))


def test_a_gray_picture_becomes_rgb(encoder: Encoder) -> None:
    image = noise(64, 48).convert("L")
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_allclose(decode(encoder(image)).astype(int), expected, atol=3)


def test_transparency_is_composited_on_white(encoder: Encoder) -> None:
    image = noise(64, 48).convert("RGBA")
    image.putalpha(noise(64, 48, 1).convert("L"))
    white = Image.new("RGBA", image.size, "white")
    expected = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    np.testing.assert_allclose(decode(encoder(image)).astype(int), expected, atol=4)


UPRIGHT = np.asarray(corners(64, 48))
# Properties -> the picture as shown: turned counter-clockwise, then mirrored.
TURNS: list[tuple[tuple[bytes, ...], NDArray[np.uint8]]] = [
    ((rotation(0),), UPRIGHT),
    ((rotation(1),), np.rot90(UPRIGHT, 1)),
    ((rotation(2),), np.rot90(UPRIGHT, 2)),
    ((rotation(3),), np.rot90(UPRIGHT, 3)),
    ((mirror(0),), UPRIGHT[::-1]),
    ((mirror(1),), UPRIGHT[:, ::-1]),
    ((rotation(1), mirror(0)), np.rot90(UPRIGHT, 1)[::-1]),
    ((rotation(1), mirror(1)), np.rot90(UPRIGHT, 1)[:, ::-1]),
    ((rotation(3), mirror(0)), np.rot90(UPRIGHT, 3)[::-1]),
]


@pytest.mark.parametrize("turn", range(len(TURNS)))
def test_the_containers_orientation_is_applied(encoder: Encoder, turn: int) -> None:
    properties, expected = TURNS[turn]
    data = with_properties(encoder(corners(64, 48)), *properties)
    np.testing.assert_allclose(decode(data).astype(int), expected, atol=3)
    assert image_size(data) == expected.shape[1::-1]


@pytest.mark.parametrize(("x", "y"), [(0, 0), (6, -4), (-8, 8), (-2, 0)])
@pytest.mark.parametrize("quarters", [0, 1])
def test_a_part_is_shown(encoder: Encoder, x: int, y: int, quarters: int) -> None:
    """Cropped first, then turned."""
    image = noise(64, 64)
    data = with_properties(encoder(image), crop(48, 40, x, y), rotation(quarters))
    left, top = 8 + x // 2, 12 + y // 2
    expected = np.rot90(np.asarray(image)[top : top + 40, left : left + 48], quarters)
    np.testing.assert_allclose(decode(data).astype(int), expected, atol=4)
    assert image_size(data) == expected.shape[1::-1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_that_of_exif_is_not_applied_on_top_of_it(encoder: Encoder, orientation: int) -> None:
    """Phones write both: EXIF's is for programs that do not know the container's."""
    exif = Image.Exif()
    exif[0x010E] = "MARK"  # a description, after which the encoders' own orientation is replaced
    entry = b"\x01\x0e\x00\x02\x00\x00\x00\x05"
    data = with_properties(encoder(corners(64, 48), exif=exif.tobytes()), rotation(3))
    assert data.count(entry) == 1
    at = data.index(entry)
    turned = b"\x01\x12\x00\x03\x00\x00\x00\x01" + bytes((0, orientation, 0, 0))
    data = data[:at] + turned + data[at + len(turned) :]
    expected = np.rot90(UPRIGHT, 3)
    np.testing.assert_allclose(decode(data).astype(int), expected, atol=3)
    assert image_size(data) == (48, 64)


def test_an_orientation_that_an_encoder_moved_into_the_container_counts() -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = corners(64, 48)
        image.info["exif"] = exif.tobytes()
        expected = np.asarray(ImageOps.exif_transpose(image))
        data = avif(corners(64, 48), exif=exif)
        np.testing.assert_allclose(decode(data).astype(int), expected, atol=3)
        assert image_size(data) == expected.shape[1::-1]


@pytest.mark.parametrize("body", [b"", b"x", b"II*\0\xff\xff\xff\xff", bytes(2**21)])
def test_metadata_does_not_refuse_a_picture(encoder: Encoder, body: bytes) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0"
    data = encoder(corners(64, 48), exif=exif + b"MARK" + bytes(len(body)), xmp=b"<x" * 1000)
    assert b"MARK" in data
    at = data.index(b"MARK") - len(exif) + 6
    data = data[:at] + (body + data[at + len(body) :])[: len(data) - at]
    np.testing.assert_allclose(decode(data).astype(int), UPRIGHT, atol=3)


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_deep_samples_are_scaled(bits: int, channels: int) -> None:
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64, 1).astype(np.uint16)
    samples = np.concatenate([ramp, ramp[::-1], ramp // 2, ramp[:, ::-1]], axis=2)
    samples = np.ascontiguousarray(samples[:, :, :channels])
    mode = {1: "I;16", 3: "RGB;16", 4: "RGBA;16"}[channels]
    file, made = io.BytesIO(), pillow_heif.HeifFile()
    made.add_frombytes(mode, (64, 48), samples.tobytes())
    before = pillow_heif.options.SAVE_HDR_TO_12_BIT
    pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    try:
        made.save(file, quality=-1, chroma=444)
    finally:
        pillow_heif.options.SAVE_HDR_TO_12_BIT = before
    values = samples / 65535
    alpha = values[:, :, 3:] if channels == 4 else np.ones((48, 64, 1))
    expected = (values[:, :, : min(channels, 3)] * alpha + 1 - alpha) * 255
    pixels = decode(file.getvalue())
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=2)


def test_the_primary_picture_is_used() -> None:
    for primary, expected in ((0, [255, 0, 0]), (1, [0, 0, 255])):
        file, made = io.BytesIO(), pillow_heif.HeifFile()
        made.add_from_pillow(Image.new("RGB", (64, 48), "red"))
        made.add_from_pillow(Image.new("RGB", (48, 64), "blue"))
        made.save(file, quality=-1, chroma=444, primary_index=primary)
        np.testing.assert_allclose(decode(file.getvalue())[3, 3].astype(int), expected, atol=3)
        assert image_size(file.getvalue()) == ((64, 48), (48, 64))[primary]


def test_the_first_frame_of_a_sequence_is_used() -> None:
    frames = [Image.new("RGB", (64, 48), color) for color in ("red", "lime", "blue")]
    data = avif(frames[0], save_all=True, append_images=frames[1:])
    assert data[8:12] == b"avis"
    np.testing.assert_allclose(decode(data)[3, 3].astype(int), [255, 0, 0], atol=4)


def failure(data: bytes) -> MultigrainError:
    with pytest.raises(MultigrainError) as caught:
        decode(data)
    return caught.value


def test_a_huge_picture_is_refused_by_its_header(encoder: Encoder) -> None:
    error = failure(with_size(encoder(corners(64, 48)), 20_000, 10_000))
    assert error.kind is ErrorKind.IMAGE_TOO_LARGE
    assert "20000 x 10000" in error.message


@pytest.mark.parametrize(
    ("code", "brand", "name"),
    [
        (b"jpeg", b"jpeg", "JPEG"),
        (b"j2k1", b"j2ki", "JPEG 2000"),
        (b"avc1", b"avci", "H.264"),
        (b"vvc1", b"vvic", "H.266"),
    ],
)
def test_other_compressions_are_named(code: bytes, brand: bytes, name: str) -> None:
    data = heic(corners(64, 48)).replace(b"hvc1", code)
    for changed in (data, data.replace(b"heic", brand)):
        error = failure(changed)
        assert error.kind is ErrorKind.IMAGE_FORMAT
        assert f"a HEIF image with {name} compression" in error.message


def test_the_compression_decides_and_not_the_brand() -> None:
    for data, brand in ((heic(noise(64, 48)), b"avif"), (avif(noise(64, 48)), b"mif1")):
        changed = data[:8] + brand + data[12:]
        np.testing.assert_array_equal(decode(changed), decode(data))


def test_a_very_wide_picture_is_named(encoder: Encoder) -> None:
    error = failure(with_size(encoder(corners(64, 48)), 40_000, 10))
    assert error.kind is ErrorKind.IMAGE_FORMAT
    assert "more than 32768 pixels" in error.message


def with_table(*parts: bytes, types: bytes = b"") -> bytes:
    """A file without pixels and with these boxes of properties."""
    table = box(b"iinf", bytes(6) + types) + box(b"iprp", b"".join(parts))
    return box(b"ftyp", b"avif\0\0\0\0avifmif1") + box(b"meta", bytes(4) + table)


SIZE = box(b"ispe", struct.pack(">III", 0, 64, 48))
# Item 0, which has 255 properties.
ENTRY = bytes((0, 0, 255)) + bytes(range(255))
MANY: dict[str, bytes] = {
    "a list": with_table(box(b"ipco", box(b"free", b"") * 11_000)),
    "many lists": with_table(box(b"ipco", box(b"free", b"") * 9_999) * 20),
    "items": with_table(types=box(b"infe", bytes(12)) * 11_000),
    "associations": with_table(
        box(b"ipco", SIZE), box(b"ipma", struct.pack(">II", 0, 9_999) + ENTRY * 9_999) * 4
    ),
    "the file": box(b"ftyp", b"avif\0\0\0\0avifmif1") + box(b"free", b"") * 200_000,
}


@pytest.mark.parametrize("name", MANY)
def test_the_boxes_of_a_file_are_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs time, wherever it stands."""
    reads = 0
    number = heif_boxes._Reader.number

    def counted(self: Any, *arguments: Any, **options: Any) -> int:
        nonlocal reads
        reads += 1
        return number(self, *arguments, **options)

    monkeypatch.setattr(heif_boxes._Reader, "number", counted)
    error = failure(MANY[name])
    assert error.kind is ErrorKind.IMAGE_FORMAT
    assert "more than 10000 boxes" in error.message
    assert reads < 12_000


def test_a_file_of_many_boxes_is_read_or_refused_by_name(encoder: Encoder) -> None:
    for count in (90, 5000):
        many = rotation(0) + box(b"free", b"") * count
        data = with_properties(encoder(corners(64, 48)), many)
        if count > 90 and encoder is heic:  # its library reads 100 in a list
            error = failure(data)
            assert error.kind is ErrorKind.IMAGE_FORMAT
            assert "more boxes" in error.message
        else:
            np.testing.assert_allclose(decode(data).astype(int), UPRIGHT, atol=3)


def test_a_picture_is_decoded_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several are decoded at the same time, and containers limit threads otherwise."""
    threads = []

    def decoder(data: bytes, codec: str, most: int) -> Any:
        threads.append(most)
        return original(data, codec, most)

    original = _avif.AvifDecoder
    monkeypatch.setattr(_avif, "AvifDecoder", decoder)
    decode(avif(corners(64, 48)))
    assert threads == [1]
    assert pillow_heif.options.DECODE_THREADS == 1


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 0.95])
def test_a_truncated_file_is_unreadable(encoder: Encoder, share: float) -> None:
    data = encoder(noise(64, 48))
    error = failure(data[: int(len(data) * share)])
    assert error.kind is ErrorKind.IMAGE_UNREADABLE
    assert "whole file" in error.message


def test_damaged_files_raise_only_multigrain_errors(encoder: Encoder) -> None:
    random = np.random.default_rng(0)
    whole = encoder(noise(24, 24))
    for _ in range(100):
        data = bytearray(whole)
        for place in random.integers(12, len(data), 3):
            data[place] = random.integers(0, 256)
        try:
            decode(bytes(data))
        except MultigrainError as error:
            assert error.kind.name.startswith("IMAGE_")  # noqa: PT017


def test_decoding_is_thread_safe(encoder: Encoder) -> None:
    files = [encoder(noise(40, 30, seed)) for seed in range(4)]
    alone = [decode(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        for index, pixels in enumerate(pool.map(decode, files * 5)):
            np.testing.assert_array_equal(pixels, alone[index % 4])


def test_without_its_library_the_format_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "_pillow_heif", None)
    error = failure(heic(noise(64, 48)))
    assert error.kind is ErrorKind.IMAGE_FORMAT
    assert "multigrain[heif]" in error.message
    monkeypatch.setattr(heif, "_AVIF", False)
    error = failure(avif(noise(64, 48)))
    assert error.kind is ErrorKind.IMAGE_FORMAT
    assert "an AVIF image" in error.message
