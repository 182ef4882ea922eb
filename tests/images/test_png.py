"""PNG: every kind by its specification, and metadata that must not matter."""

from __future__ import annotations

import functools
import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images import png, png_chunks
from multigrain.images.decode import decode, image_size
from tests.images.files import CASES, corners, encode, noise, reference
from tests.images.pngs import (
    CHANNELS,
    GRAY,
    KINDS,
    PALETTE,
    RGB,
    RGBA,
    SIGNATURE,
    chunk,
    header,
    shown,
    write,
)

SIZES = [(1, 1), (3, 2), (5, 9), (17, 13)]


def samples_of(
    kind: tuple[int, int], size: tuple[int, int], seed: int = 0
) -> NDArray[np.integer[Any]]:
    color, depth = kind
    random = np.random.default_rng(seed)
    shape = (size[1], size[0], CHANNELS[color])
    samples = random.integers(0, 1 << depth, shape, dtype=np.uint16)
    if depth == 16:
        # Values with equal high bytes: an answer that ignores the low bytes is wrong.
        samples[::2] = samples[::2] % 4 + 0x1280
    return samples


def palette_of(depth: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (1 << depth, 3), dtype=np.uint8)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows_its_samples(kind: tuple[int, int], interlaced: bool) -> None:
    color, depth = kind
    palette = palette_of(depth) if color == PALETTE else None
    before = chunk(b"PLTE", palette.tobytes()) if palette is not None else b""
    # sBIT tells how precise the source was; it does not change the picture.
    before = chunk(b"sBIT", bytes([1] * (3 if color == PALETTE else CHANNELS[color]))) + before
    for size in SIZES:
        samples = samples_of(kind, size)
        data = write(samples, depth, color, interlaced=interlaced, before=before)
        expected = shown(samples, depth, color, palette=palette)
        atol = 1.01 if color >= 4 and depth == 8 else 0.51
        np.testing.assert_allclose(decode(data), expected, atol=atol)
        assert image_size(data) == size


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[0] in (GRAY, RGB)])
def test_a_transparent_sample_is_the_files_sample(kind: tuple[int, int], interlaced: bool) -> None:
    """All bits of every sample are compared, before the samples are scaled."""
    color, depth = kind
    samples = samples_of(kind, (9, 8))
    chosen = {tuple(int(v) for v in pixel) for pixel in samples.reshape(-1, CHANNELS[color])}
    for clear in sorted(chosen)[:: max(1, len(chosen) // 6)]:
        trns = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
        data = write(samples, depth, color, before=trns, interlaced=interlaced)
        expected = shown(samples, depth, color, clear=clear)
        np.testing.assert_allclose(decode(data), expected, atol=0.501)
        # Higher bits than the depth do not count.
        if depth < 16:
            high = struct.pack(f">{len(clear)}H", *(v | 0xFF00 for v in clear))
            data = write(samples, depth, color, before=chunk(b"tRNS", high))
            np.testing.assert_allclose(decode(data), expected, atol=0.501)


@pytest.mark.parametrize("pixels", [1, 30, 100])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[0] >= 4 or kind[1] > 4])
def test_bands_of_rows_give_the_same_picture(
    kind: tuple[int, int], pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each filter continues from the band before."""
    color, depth = kind
    samples = samples_of(kind, (13, 37))
    clear = samples[3, 4, :] if color in (GRAY, RGB) else ()
    before = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if len(clear) else b""
    if color == PALETTE:
        before = chunk(b"PLTE", palette_of(depth).tobytes())
    for idat in (1, 100):
        data = write(samples, depth, color, before=before, idat=idat)
        monkeypatch.setattr(png, "_BAND_PIXELS", 2**20)
        expected = decode(data)
        monkeypatch.setattr(png, "_BAND_PIXELS", pixels)
        np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("damage", [b"", bytes(2000), b"\x78\x9c\xff\xff\xff"])
def test_damage_in_a_band_is_found(damage: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "_BAND_PIXELS", 30)
    data = write(samples_of((RGBA, 8), (13, 37)), 8, RGBA, idat=10**6)
    at = data.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", data[at - 8 : at - 4])
    body = data[at : at + length]
    for keep in (0, 2, 40, length // 2, length - 5):
        changed = SIGNATURE + header(13, 37, 8, RGBA) + chunk(b"IDAT", body[:keep] + damage)
        assert failure(changed + chunk(b"IEND", b"")).kind is ErrorKind.IMAGE_UNREADABLE


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("distance", [1, 255, 256, 257])
def test_a_16_bit_color_next_to_the_transparent_one_stays(channel: int, distance: int) -> None:
    samples = np.full((2, 2, 3), 0x4321, np.uint16)
    samples[0, 0, channel] += distance
    trns = chunk(b"tRNS", struct.pack(">3H", 0x4321, 0x4321, 0x4321))
    pixels = decode(write(samples, 16, RGB, before=trns))
    assert (pixels[1] == 255).all()
    np.testing.assert_allclose(pixels[0, 0], samples[0, 0] / 257, atol=0.501)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("entries", [1, 2, 100])
def test_a_palette_has_alpha(depth: int, entries: int) -> None:
    samples = samples_of((PALETTE, depth), (9, 8))
    palette = palette_of(depth)
    alpha = bytes([0, 128, 255, 7] * 64)[: min(entries, 1 << depth)]
    before = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", alpha)
    expected = shown(samples, depth, PALETTE, palette=palette, alpha=alpha)
    np.testing.assert_allclose(
        decode(write(samples, depth, PALETTE, before=before)), expected, atol=1.01
    )


def test_all_16_bit_samples_are_scaled_with_rounding() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    expected = np.rint(every / 257)
    for channels, color in ((1, GRAY), (3, RGB)):
        file = io.BytesIO()
        # Filters are tested elsewhere, and slow to write.
        rows = np.repeat(every, channels, axis=2).astype(">u2").reshape(256, -1).view(np.uint8)
        stream = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes(), 1)
        file.write(SIGNATURE + header(256, 256, 16, color))
        file.write(chunk(b"IDAT", stream) + chunk(b"IEND", b""))
        np.testing.assert_array_equal(decode(file.getvalue()), np.repeat(expected, 3, axis=2))


@pytest.mark.process
def test_a_sample_agrees_with_imagemagick(tmp_path: Path) -> None:
    for number, ((color, depth), interlaced) in enumerate(itertools.product(KINDS, (False, True))):
        samples = samples_of((color, depth), (11, 7), seed=number)
        before = b""
        if color == PALETTE:
            before = chunk(b"PLTE", palette_of(depth).tobytes()) + chunk(b"tRNS", b"\x00\x80")
        elif color in (GRAY, RGB):
            before = chunk(b"tRNS", struct.pack(f">{CHANNELS[color]}H", *samples[3, 4].tolist()))
        data = write(samples, depth, color, before=before, interlaced=interlaced)
        np.testing.assert_allclose(
            decode(data).astype(int),
            reference(data, "png", tmp_path),
            atol=1,
            err_msg=f"color type {color}, {depth} bits",
        )


@pytest.mark.parametrize("name", ["grey2-trns1", "grey4-trns5"])
def test_the_reported_gray_with_a_transparent_sample(name: str) -> None:
    expected = decode((CASES / f"{name}.expected.png").read_bytes())
    np.testing.assert_array_equal(decode((CASES / f"{name}.png").read_bytes()), expected)


@functools.cache
def metadata() -> dict[str, bytes]:
    """Metadata of more than a megabyte unpacked, damaged, or of no meaning."""
    long = b"x" * 1_400_000
    packed = zlib.compress(long)
    profile = zlib.compress(bytes(2 * 2**20))
    return {
        "tEXt": chunk(b"tEXt", b"Comment\x00" + long),
        "zTXt": chunk(b"zTXt", b"Comment\x00\x00" + packed),
        "many zTXt": chunk(b"zTXt", b"Comment\x00\x00" + packed) * 100,
        "iTXt": chunk(b"iTXt", b"Comment\x00\x01\x00en\x00\x00" + packed),
        "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\x00\x00\x00\x00\x00" + long),
        "packed XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\x00\x01\x00\x00\x00" + packed),
        "iCCP": chunk(b"iCCP", b"ICC profile\x00\x00" + profile),
        "bomb in iCCP": chunk(b"iCCP", b"p\x00\x00" + zlib.compress(bytes(10**7))),
        "eXIf": chunk(b"eXIf", b"II*\x00" + long),
        "no text": chunk(b"tEXt", b"") + chunk(b"zTXt", b"") + chunk(b"iTXt", b"\x00"),
        "zTXt without zlib": chunk(b"zTXt", b"Comment\x00\x00not zlib"),
        "iCCP without zlib": chunk(b"iCCP", b"p\x00\x00not zlib"),
        "damaged eXIf": chunk(b"eXIf", b"II*\x00\xff\xff\xff\xff"),
        "old EXIF": chunk(b"tEXt", b"Raw profile type exif\x00\nexif\n  8\nzz"),
        "packed old EXIF": chunk(b"zTXt", b"Raw profile type exif\x00\x00not zlib"),
        "gAMA": chunk(b"gAMA", b"\x00"),
        "cHRM": chunk(b"cHRM", b"1"),
        "pHYs": chunk(b"pHYs", b""),
        "tIME": chunk(b"tIME", b"\xff" * 7),
        "bKGD": chunk(b"bKGD", b"\x00\x01"),
        "hIST": chunk(b"hIST", b"\x00"),
        "sRGB": chunk(b"sRGB", b"\x09"),
        "cICP": chunk(b"cICP", b"\x09\x10\x00\x01"),
        "acTL": chunk(b"acTL", b"\x00"),
        "fcTL": chunk(b"fcTL", b"\x00" * 26),
        "fdAT": chunk(b"fdAT", b"\x00\x00"),
        "wrong tRNS": chunk(b"tRNS", b"\x00"),
        "unknown": chunk(b"abCd", long),
        "no letters": chunk(b"a\x00\xff1", b"x"),
    }


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("name", metadata())
def test_metadata_does_not_refuse_a_picture(name: str, place: str) -> None:
    samples = samples_of((RGB, 8), (7, 5))
    data = write(samples, 8, RGB, **{place: metadata()[name]})
    np.testing.assert_array_equal(decode(data), samples)
    assert image_size(data) == (7, 5)


@pytest.mark.parametrize(
    "name", [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"eXIf", b"tRNS", b"pHYs", b"acTL"]
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_wrong_checksum_of_an_ancillary_chunk_is_ignored(name: bytes, place: str) -> None:
    samples = samples_of((RGB, 8), (7, 5))
    data = write(samples, 8, RGB, **{place: chunk(name, bytes(6), crc=123)})
    np.testing.assert_array_equal(decode(data), samples)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"IDAT"])
def test_a_wrong_checksum_of_a_critical_chunk_is_refused(name: bytes) -> None:
    palette = chunk(b"PLTE", palette_of(2).tobytes())
    data = bytearray(write(samples_of((PALETTE, 2), (7, 5)), 2, PALETTE, before=palette))
    at = data.index(name)
    data[at + 4 + int.from_bytes(data[at - 4 : at], "big")] ^= 1
    error = failure(bytes(data))
    assert error.kind is ErrorKind.IMAGE_UNREADABLE
    assert name.decode() in error.message


@pytest.mark.parametrize("extra", [chunk(b"tEXt", b""), chunk(b"IDAT", b""), chunk(b"abCd", b"")])
def test_a_file_of_very_many_chunks_is_refused(extra: bytes) -> None:
    """Each costs time, however small it is."""
    error = failure(write(samples_of((RGB, 8), (7, 5)), 8, RGB, before=extra * 100_000))
    assert error.kind is ErrorKind.IMAGE_FORMAT
    assert "chunks" in error.message


def test_only_the_first_old_exif_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(png_chunks, "_old_exif", lambda text, packed: calls.append(text) or 0)
    bomb = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(10**6)))
    decode(write(samples_of((RGB, 8), (7, 5)), 8, RGB, before=bomb * 1000))
    assert len(calls) == 1


def failure(data: bytes) -> MultigrainError:
    with pytest.raises(MultigrainError) as caught:
        decode(data)
    return caught.value


def test_an_unknown_critical_chunk_is_named() -> None:
    data = write(samples_of((RGB, 8), (7, 5)), 8, RGB, before=chunk(b"ABCD", b""))
    error = failure(data)
    assert error.kind is ErrorKind.IMAGE_FORMAT
    assert "ABCD" in error.message


def test_a_png_of_an_ios_app_is_named() -> None:
    body = chunk(b"CgBI", bytes(4)) + header(7, 5, 8, RGB) + chunk(b"IDAT", b"")
    error = failure(SIGNATURE + body)
    assert error.kind is ErrorKind.IMAGE_FORMAT
    assert "Xcode" in error.message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (SIGNATURE, "header"),
        (SIGNATURE + chunk(b"IDAT", b""), "header is missing"),
        (SIGNATURE + header(7, 5, 3, RGB), "color type 2 with 3 bits"),
        (SIGNATURE + header(7, 5, 8, 1), "color type 1 with 8 bits"),
        (SIGNATURE + header(7, 5, 8, RGB, 2), "interlacing"),
        (SIGNATURE + header(7, 5, 8, RGB) * 2, "repeated"),
        (SIGNATURE + header(7, 5, 8, PALETTE), "palette is missing"),
        (SIGNATURE + header(7, 5, 8, PALETTE) + chunk(b"PLTE", b"12"), "palette has a wrong"),
        (SIGNATURE + header(7, 5, 8, RGB), "no pixels"),
        (SIGNATURE + header(7, 5, 8, RGB) + chunk(b"IDAT", b"abc"), "cannot be decoded"),
        (SIGNATURE + header(7, 5, 8, RGB) + chunk(b"IDAT", zlib.compress(b"")), "cannot be"),
        (SIGNATURE + header(1, 1, 8, RGB) + chunk(b"IDAT", zlib.compress(b"\x07123")), "cannot"),
        (SIGNATURE + header(7, 5, 8, RGB) + chunk(b"IDAT", b"abc")[:-5], "within a chunk"),
    ],
)
def test_damage_is_described(data: bytes, reason: str) -> None:
    error = failure(data)
    assert error.kind is ErrorKind.IMAGE_UNREADABLE
    assert reason in error.message


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (0, 0)])
def test_a_picture_without_pixels_says_its_size(size: tuple[int, int]) -> None:
    error = failure(SIGNATURE + header(*size, 8, RGB) + chunk(b"IDAT", zlib.compress(b"")))
    assert error.kind is ErrorKind.IMAGE_FORMAT
    assert f"{size[0]} x {size[1]} pixels" in error.message
    assert ("0 columns" in error.message) == (size[0] == 0)
    assert ("0 rows" in error.message) == (size[1] == 0)


def test_the_case_of_a_picture_without_columns() -> None:
    error = failure((CASES / "zero-width.png").read_bytes())
    assert error.kind is ErrorKind.IMAGE_FORMAT
    assert "0 columns" in error.message


def test_a_palette_of_an_rgb_picture_is_a_suggestion_only() -> None:
    samples = samples_of((RGBA, 8), (7, 5))
    samples[:, :, 3] = 255
    for body in (bytes(6), b"12"):
        data = write(samples, 8, RGBA, before=chunk(b"PLTE", body))
        np.testing.assert_array_equal(decode(data), samples[:, :, :3])


def test_the_end_may_be_missing_and_more_may_follow() -> None:
    samples = samples_of((RGB, 8), (7, 5))
    data = write(samples, 8, RGB)
    wrong = data[:-4] + b"\xff" * 4, data[:-12] + chunk(b"IEND", b"x", crc=1) + b"\xff" * 99
    for changed in (data[:-12], data[:-3], data + b"rest", data + data, *wrong):
        np.testing.assert_array_equal(decode(changed), samples)
    for cut in (data[:-30], data[:-30] + chunk(b"IEND", b"", crc=1)):
        assert failure(cut).kind is ErrorKind.IMAGE_UNREADABLE


def test_a_transparency_out_of_place_has_no_effect() -> None:
    """As in libpng: after the pixels, before the palette, repeated, or of a wrong length."""
    samples = samples_of((GRAY, 8), (7, 5))
    plain = decode(write(samples, 8, GRAY))
    clear = chunk(b"tRNS", struct.pack(">H", int(samples[0, 0, 0])))
    np.testing.assert_array_equal(decode(write(samples, 8, GRAY, after=clear)), plain)
    wrong = chunk(b"tRNS", bytes([0, 0, int(samples[0, 0, 0])]))
    np.testing.assert_array_equal(decode(write(samples, 8, GRAY, before=wrong)), plain)
    first = decode(write(samples, 8, GRAY, before=clear))
    again = chunk(b"tRNS", struct.pack(">H", int(samples[0, 1, 0])))
    np.testing.assert_array_equal(decode(write(samples, 8, GRAY, before=clear + again)), first)
    palette = palette_of(2)
    indices = samples_of((PALETTE, 2), (7, 5))
    before = chunk(b"tRNS", b"\x00") + chunk(b"PLTE", palette.tobytes())
    expected = shown(indices, 2, PALETTE, palette=palette)
    pixels = decode(write(indices, 2, PALETTE, before=before))
    np.testing.assert_array_equal(pixels, np.rint(expected))


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_orientation_is_read_from_exif_and_old_exif(place: str) -> None:
    upright = np.asarray(corners())
    samples = np.rot90(upright, 1)  # orientation 6
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes().removeprefix(b"Exif\x00\x00")
    digits = f"\nexif\n{len(block) + 6:8}\n{(b'Exif' + bytes(2) + block).hex()}\n".encode()
    key = b"Raw profile type exif\x00"
    for extra in (
        chunk(b"eXIf", block),
        chunk(b"tEXt", key + digits),
        chunk(b"zTXt", key + b"\x00" + zlib.compress(digits)),
    ):
        data = write(samples, 8, RGB, idat=10**6, **{place: extra})
        np.testing.assert_array_equal(decode(data), upright)
        assert image_size(data) == (40, 20)


def test_an_orientation_in_xmp_is_not_applied() -> None:
    """As in browsers, ImageMagick and libvips."""
    samples = np.asarray(corners())
    xmp = b'XML:com.adobe.xmp\x00\x00\x00\x00\x00<x tiff:Orientation="6"/>'
    data = write(samples, 8, RGB, before=chunk(b"iTXt", xmp))
    np.testing.assert_array_equal(decode(data), samples)


def test_pngs_of_pillow_are_decoded_like_pillow_does() -> None:
    for mode in ("1", "L", "P", "RGB", "I;16"):
        image = (
            noise(40, 30).convert("L").convert("I;16")
            if mode == "I;16"
            else (noise(40, 30).convert(mode))
        )
        pixels = decode(encode(image, "PNG"))
        if mode != "I;16":
            np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def test_the_cases_of_metadata_above_a_megabyte() -> None:
    expected = decode((CASES / "metadata.expected.png").read_bytes())
    for name in ("iccp", "xmp", "ztxt"):
        np.testing.assert_array_equal(decode((CASES / f"{name}.png").read_bytes()), expected)
