"""TIFF beyond the matrix of :mod:`tests.images.test_tiff_matrix`: codecs, pages and damage."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images import tiff_pages
from multigrain.images.decode import decode, decode_image, image_size
from multigrain.images.limits import ImageLimits
from tests.fuzz.mutate import mutated
from tests.images.files import corners, encode, noise, reference, stored_as
from tests.images.test_damage import INSIDE
from tests.images.tiff_files import (
    BLACK_IS_ZERO,
    CIELAB,
    PALETTE,
    RGB,
    WHITE_IS_ZERO,
    YCBCR,
    Kind,
    expected,
    join,
    write,
)

ORDERS: Final[tuple[Literal["<", ">"], ...]] = ("<", ">")
CASES = Path(__file__).parent / "tiff_cases"
PICTURE = np.asarray(noise(48, 40))
GRAY = np.asarray(noise(48, 40).convert("L"))


def case(name: str) -> bytes:
    return (CASES / name).read_bytes()


def failure(data: bytes, limits: ImageLimits | None = None) -> MultigrainError:
    with pytest.raises(MultigrainError) as caught:
        decode(data, limits or ImageLimits())
    assert INSIDE.search(caught.value.message) is None, caught.value.message
    return caught.value


def refused(data: bytes) -> str:
    """Returns the name of the kind in the error of a file that is whole."""
    error = failure(data)
    assert error.kind is ErrorKind.IMAGE_FORMAT, error.message
    assert "TIFF" in error.message
    assert "save it as" in error.message
    with pytest.raises(MultigrainError):
        image_size(data)
    return error.message


def by_tifffile(samples: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, samples, metadata=None, **options)
    return file.getvalue()


def difference(pixels: NDArray[Any], other: NDArray[Any]) -> int:
    return int(np.abs(pixels.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("name", ["white-is-zero-16-input", "white-is-zero-16-big-endian"])
def test_white_is_zero_of_16_bits_is_no_negative(name: str) -> None:
    picture = np.asarray(Image.open(CASES / "white-is-zero-16.expected.png").convert("RGB"))
    assert difference(decode(case(f"{name}.tif")), picture) <= 1


def test_white_is_zero_of_imagemagick(tmp_path: Path) -> None:
    data = case("white-is-zero-16-by-imagemagick.tif")
    assert difference(decode(data), reference(data, "tif", tmp_path)) <= 1


def test_gray_of_12_bits_is_not_dark() -> None:
    picture = np.asarray(Image.open(CASES / "gray-12.expected.png").convert("RGB"))
    assert difference(decode(case("gray-12.tif")), picture) <= 1


@pytest.mark.parametrize("name", ["la16", "t-12rgb", "webp", "cmyka"])
def test_kinds_that_were_called_damaged_are_read(name: str, tmp_path: Path) -> None:
    data = case(f"{name}.tif")
    if name == "webp":  # not every ImageMagick reads WebP in TIFF
        picture = reference(case("t-12rgb.tif"), "tif", tmp_path)
    elif name == "cmyka":  # ImageMagick would composite the inks
        samples = tifffile.imread(CASES / "cmyka.tif")
        picture = np.rint(expected(samples, Kind(photometric=5, extra=(2,))))
    else:
        picture = reference(data, "tif", tmp_path)
    assert difference(decode(data), picture) <= 1


def test_gray_and_alpha_in_planes() -> None:
    np.testing.assert_array_equal(decode(case("la-planes.tif")), decode(case("la16.tif")))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("j2k", "JPEG 2000 compression"),
        ("jxl", "JPEG XL compression"),
        ("ms13", "13 channels"),
        ("t-float", "32-bit floating-point samples"),
    ],
)
def test_whole_files_of_other_kinds_are_refused_by_name(name: str, kind: str) -> None:
    assert f"a TIFF with {kind}" in refused(case(f"{name}.tif"))


@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_jpeg_inside(order: Any, tile: Any) -> None:
    options: dict[str, Any] = {"tile": tile, "byteorder": order, "compression": "jpeg"}
    if tile is None:
        options["rowsperstrip"] = 16
    rgb = {"level": 95, "outcolorspace": "rgb"}
    gray = np.repeat(GRAY[:, :, None], 3, axis=2)
    inks = np.dstack([255 - PICTURE, np.zeros_like(GRAY)])
    cmyk = {"level": 95, "colorspace": "cmyk", "outcolorspace": "cmyk"}
    for picture, data in (
        (gray, by_tifffile(GRAY, photometric="minisblack", **options)),
        (gray, by_tifffile(255 - GRAY, photometric="miniswhite", **options)),
        (PICTURE, by_tifffile(PICTURE, photometric="rgb", compressionargs=rgb, **options)),
        # Without that argument, tifffile converts to YCbCr.
        (PICTURE, by_tifffile(PICTURE, photometric="rgb", subsampling=(2, 2), **options)),
        (PICTURE, by_tifffile(PICTURE, photometric="rgb", subsampling=(1, 1), **options)),
        (PICTURE, by_tifffile(inks, photometric="separated", compressionargs=cmyk, **options)),
    ):
        assert np.abs(decode(data).astype(int) - picture).mean() < 3


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
def test_fax_compression(compression: str, photometric: int) -> None:
    picture = GRAY > 128
    image = Image.fromarray(picture)
    data = encode(image, "TIFF", compression=compression, tiffinfo={262: photometric})
    assert struct.pack("<HHIHH", 262, 3, 1, photometric, 0) in data
    np.testing.assert_array_equal(decode(data)[:, :, 0], np.where(picture, 255, 0))


@pytest.mark.parametrize("compression", [1, 5, 8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_ycbcr_without_subsampling(compression: int, order: Any) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (17, 20, 3)).astype(np.uint8)
    y, cb, cr = np.moveaxis(samples.astype(float) - (0, 128, 128), 2, 0)
    # ITU-R BT.601, as TIFF 6.0 section 21
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=2)
    kind = Kind(YCBCR, order=order, compression=compression, tags={530: ("H", [1, 1])})
    assert difference(decode(write(samples, kind)), np.rint(rgb.clip(0, 255))) <= 1


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("tile", [None, (16, 32)])
def test_webp_inside(channels: int, tile: Any) -> None:
    samples = np.dstack([PICTURE, GRAY])[:, :, :channels]
    options: dict[str, Any] = {"extrasamples": (2,)} if channels == 4 else {}
    data = by_tifffile(
        samples,
        photometric="rgb",
        compression="webp",
        compressionargs={"lossless": True},
        tile=tile,
        **options,
    )
    kind = Kind(RGB, extra=(2,) if channels == 4 else None)
    assert difference(decode(data), np.rint(expected(samples, kind))) <= 1


def refused_kinds() -> Iterator[tuple[str, bytes]]:
    gray, rgb = GRAY[:17, :20, None], PICTURE[:17, :20]
    more = np.repeat(gray, 4, axis=2)
    more5 = np.dstack([rgb, gray, gray])
    for size, name in ((1, "8-bit"), (2, "16-bit"), (4, "32-bit"), (8, "64-bit")):
        samples, bits = (gray // 2).astype(f"i{size}"), 8 * size
        for photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
            kind = Kind(photometric, bits, sample_format=2)
            yield f"{name} signed samples", write(samples, kind)
        if size > 2:
            yield f"{name} samples", write(samples.astype(f"u{size}"), Kind(bits=bits))
        if size > 1:
            kind = Kind(RGB, bits, sample_format=3)
            yield f"{name} floating-point samples", write(rgb.astype(f"f{size}"), kind)
            kind = replace(kind, compression=8, predictor=3)
            yield f"{name} floating-point samples", write(rgb.astype(f"f{size}"), kind)
    yield "64-bit complex samples", write(gray.astype("u8"), Kind(bits=64, sample_format=6))
    yield "CIELab colors", write(rgb, Kind(CIELAB))
    yield "ICCLab colors", write(rgb, Kind(9))
    yield "LogLuv colors", write(rgb, Kind(32845))
    yield "the raw data of a camera", write(gray, Kind(32803))
    yield "the raw data of a camera", write(rgb, Kind(34892))
    yield "a mask instead of a picture", write(gray % 2, Kind(4, 1))
    yield "photometric interpretation 77", write(gray, Kind(77))
    yield "samples of unknown meaning", write(gray, Kind(None))
    yield "inks other than CMYK", write(more, Kind(5, tags={332: ("H", [2])}))
    yield "indexed colors", write(gray, Kind(BLACK_IS_ZERO, tags={346: ("H", [1])}))
    yield "4 channels", write(more, Kind())
    yield "3 channels", write(more[:, :, :3], Kind(extra=(0, 0)))
    yield "7 channels", write(np.dstack([more, rgb]), Kind(RGB, extra=(0, 0, 0, 0)))
    name = "a fourth channel of unspecified meaning"
    yield name, write(np.dstack([rgb, gray]), Kind(RGB))
    yield name, write(np.dstack([rgb, gray]), Kind(RGB, extra=(0,)))
    yield name, write(more5, Kind(RGB, extra=(0, 2)))
    yield "a fifth channel that is a second alpha", write(more5, Kind(RGB, extra=(2, 2)))
    yield "a channel of an unknown kind (7)", write(np.dstack([rgb, gray]), Kind(RGB, extra=(7,)))
    sizes = {258: ("H", [5, 6, 5])}
    yield "samples of different sizes (5, 6 bits)", write(rgb, Kind(RGB, tags=sizes))
    yield "predictor 34894", write(gray, Kind(compression=8, tags={317: ("H", [34894])}))
    for number, name in (
        (6, "old-style JPEG"),
        (34892, "lossy JPEG"),
        (34887, "LERC"),
        (34661, "JBIG"),
        (33005, "JPEG 2000"),
        (34676, "SGI LogLuv"),
        (32809, "ThunderScan"),
    ):
        yield f"{name} ", write(gray, Kind(tags={259: ("H", [number])}))
    yield "compression 4242", write(gray, Kind(tags={259: ("H", [4242])}))
    yield (
        "JPEG compression in separate planes",
        by_tifffile(
            np.moveaxis(PICTURE, 2, 0),
            photometric="rgb",
            planarconfig="separate",
            compression="jpeg",
        ),
    )
    deep = {"compression": "jpeg", "compressionargs": {"bitspersample": 12}}
    yield "12-bit JPEG", by_tifffile(GRAY.astype(np.uint16), photometric="minisblack", **deep)


def test_what_is_not_read_is_named() -> None:
    names = []
    for name, data in refused_kinds():
        error = failure(data)
        assert error.kind is ErrorKind.IMAGE_FORMAT, (name, error.message)
        assert name in error.message
        assert "save it as" in error.message
        names.append(name)
    assert len(names) == 47


def test_samples_of_an_undefined_format_are_unsigned() -> None:
    samples = GRAY[:17, :20, None]
    kind = Kind(sample_format=4)
    np.testing.assert_array_equal(decode(write(samples, kind))[:, :, :1], samples)


def test_an_undescribed_channel_is_ignored_if_it_is_opaque() -> None:
    opaque = np.full((40, 48, 1), 255, np.uint8)
    np.testing.assert_array_equal(decode(write(np.dstack([PICTURE, opaque]), Kind(RGB))), PICTURE)


def test_a_palette_of_8_bit_values() -> None:
    """Old programs wrote them although TIFF's have 16 bits."""
    table = np.random.default_rng(0).integers(0, 256, (3, 16))
    samples = np.random.default_rng(1).integers(0, 16, (17, 20, 1)).astype(np.uint8)
    kind = Kind(PALETTE, 4, tags={320: ("H", table.reshape(-1).tolist())})
    np.testing.assert_array_equal(decode(write(samples, kind)), table.T[samples[:, :, 0]])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 5])
@pytest.mark.parametrize("bits", [1, 8, 12, 16])
def test_bigtiff_and_reversed_bits(bits: int, compression: int, order: Any) -> None:
    samples = np.random.default_rng(0).integers(0, 1 << bits, (17, 21, 3))
    samples = samples.astype(np.uint8 if bits <= 8 else np.uint16)
    plain = Kind(RGB, bits, order, compression)
    want = np.rint(expected(samples, plain))
    for kind in (replace(plain, big=True), replace(plain, reversed_bits=True)):
        assert difference(decode(write(samples, kind)), want) <= 1


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_on_every_path(compression: str, orientation: int) -> None:
    upright = np.asarray(corners(64, 32))
    stored = stored_as(upright, orientation)
    image = Image.fromarray(stored)
    data = encode(image, "TIFF", compression=compression, tiffinfo={274: orientation})
    pixels = decode(data)
    assert image_size(data) == (64, 32)
    assert pixels.shape == (32, 64, 3)
    for row, column in ((4, 8), (4, 56), (28, 8), (28, 56)):
        assert difference(pixels[row, column], upright[row, column]) < 30


def page(offset: int, size: int, value: int, **tags: int) -> dict[int, Any]:
    """The tags of an 8-bit gray page of ``size`` x ``size`` bytes at ``offset``."""
    named = {254: tags.get("subfile"), 330: tags.get("children")}
    return {
        **{256: ("I", [size]), 257: ("I", [size]), 258: ("H", [8]), 262: ("H", [1])},
        **{273: ("I", [offset]), 278: ("I", [size]), 279: ("I", [size * size])},
        **{tag: ("I", [number]) for tag, number in named.items() if number is not None},
    }


def test_the_first_page_is_read_unless_it_is_a_reduced_copy() -> None:
    body = bytes([10]) * 4 + bytes([20]) * 16
    small, large = page(8, 2, 10), page(12, 4, 20)
    reduced = page(8, 2, 10, subfile=1)
    assert decode(join(body, [small, large])).shape == (2, 2, 3)
    assert decode(join(body, [reduced, large])).tolist() == [[[20] * 3] * 4] * 4
    assert image_size(join(body, [reduced, large])) == (4, 4)
    # Some programs mark each page, or the only one.
    assert decode(join(body, [reduced])).shape == (2, 2, 3)
    assert decode(join(body, [reduced, page(12, 4, 20, subfile=1)])).shape == (2, 2, 3)
    assert decode(join(body, [page(12, 4, 20, subfile=1), small])).shape == (4, 4, 3)


def test_raw_files_of_cameras_are_refused() -> None:
    """Their first page is a small preview; the picture would have to be developed."""
    body = bytes(4)
    data = join(body, [page(8, 2, 0, subfile=1, children=8)])
    assert "raw data of a camera" in refused(data)
    canon = join(b"CR\2\0" + body, [page(12, 2, 0)])
    assert canon[8:10] == b"CR"
    assert "raw data of a camera" in refused(canon)


def corpus() -> Iterator[bytes]:
    for path in sorted(CASES.glob("*.tif")):
        if path.stat().st_size < 20_000:
            yield path.read_bytes()
    for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"):
        yield encode(noise(40, 30), "TIFF", compression=name)
    yield encode(noise(40, 30).convert("1"), "TIFF", compression="group4")
    samples = np.random.default_rng(0).integers(0, 65536, (17, 20, 4)).astype(np.uint16)
    for order in ORDERS:
        for kind in (Kind(RGB, 16, extra=(1,)), Kind(5, 16, planar=True)):
            for compression in (1, 5, 8, 50000):
                tiled = replace(kind, order=order, compression=compression, tile=(16, 16))
                yield write(samples, tiled)
                yield write(samples, replace(tiled, big=True, tile=None))


def test_a_cut_file_is_unreadable_wherever_it_is_cut() -> None:
    """The tags stand at the end or the pixels do: one of them is missing."""
    for data in corpus():
        try:
            decode(data)
        except MultigrainError:
            continue  # a kind that is not read
        for end in {*range(4, 24), *range(24, len(data) - 64, 211)}:
            error = failure(data[:end])
            assert error.kind is ErrorKind.IMAGE_UNREADABLE, (end, len(data), error.message)
            assert "send the whole file" in error.message


def test_damage_has_clear_errors_and_bounded_sizes() -> None:
    limits = ImageLimits(max_bytes=1 << 20, max_pixels=100_000)
    chance = random.Random(0)
    for data in corpus():
        for _ in range(30):
            changed = mutated(data, chance)
            try:
                image = decode_image(changed, limits)
            except MultigrainError as error:
                assert error.kind.name.startswith("IMAGE_")  # noqa: PT017
                assert INSIDE.search(error.message) is None, error.message  # noqa: PT017
            else:
                assert image.width * image.height <= limits.max_pixels
                assert image_size(changed, limits) == image.size


def test_a_size_above_the_limit_is_refused_before_decoding() -> None:
    samples = np.zeros((17, 20, 1), np.uint8)
    sizes: tuple[tuple[int, tuple[int, int] | None], ...]
    sizes = ((60_000, None), (2**31 - 1, None), (60_000, (16, 16)))
    for size, tile in sizes:
        tags: dict[int, Any] = {256: ("I", [size]), 257: ("I", [size])}
        if tile is None:
            tags[278] = ("I", [size])
        else:
            tags |= {322: ("I", [size]), 323: ("I", [size])}
        error = failure(write(samples, Kind(compression=8, rows=17, tile=tile, tags=tags)))
        assert error.kind is ErrorKind.IMAGE_TOO_LARGE
        assert f"{size} x {size} pixels" in error.message


@pytest.mark.parametrize("side", [4096, 2**20])
def test_a_tile_far_larger_than_the_picture_is_refused(side: int) -> None:
    tags: dict[int, Any] = {322: ("I", [side]), 323: ("I", [side])}
    kind = Kind(compression=8, tile=(32, 32), tags=tags)
    data = write(np.zeros((17, 20, 1), np.uint8), kind)
    assert f"tiles of {side} x {side} pixels for a picture of 20 x 17" in refused(data)


def test_a_row_of_tiles_counts_for_the_limit_of_pixels() -> None:
    """It is decoded as a whole, although the picture may show a part of it only."""
    data = write(np.zeros((100, 90, 1), np.uint8), Kind(compression=8, tile=(128, 128)))
    assert decode(data, ImageLimits(max_pixels=128 * 128)).shape == (100, 90, 3)
    error = failure(data, ImageLimits(max_pixels=128 * 128 - 1))
    assert error.kind is ErrorKind.IMAGE_TOO_LARGE
    assert "128 x 128 pixels" in error.message
    # Of many small tiles, the limit is that of the picture.
    data = write(np.zeros((100, 90, 1), np.uint8), Kind(compression=8, tile=(16, 16)))
    assert decode(data, ImageLimits(max_pixels=9000)).shape == (100, 90, 3)


@pytest.mark.parametrize("size", [(500, 1000), (1500, 1000), (700, 1100), (1100, 2100)])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("planar", [False, True])
def test_tiles_that_are_converted_in_parts(
    size: tuple[int, int], compression: int, planar: bool
) -> None:
    """More pixels of a tile may lie outside the picture than are converted at once."""
    row, column, sample = np.ogrid[: size[0], : size[1], :3]
    samples = ((7 * row + column + 50 * sample) % 256).astype(np.uint8)
    kind = Kind(RGB, compression=compression, tile=(1024, 1024), planar=planar)
    np.testing.assert_array_equal(decode(write(samples, kind)), samples)


@pytest.mark.parametrize("order", ["<", ">"])
def test_hostile_counts_are_refused(order: Any) -> None:
    """Counts of tags, values, pages, strips and samples that no file can hold."""
    samples = np.zeros((17, 20, 1), np.uint8)
    many = 2**32 - 1
    for tag in (256, 258, 262, 273, 277, 279, 320, 338, 339, 347):
        data = bytearray(write(samples, Kind(order=order, tags={tag: ("I", [8, 8])})))
        directory = struct.unpack_from(order + "I", data, 4)[0]
        (entries,) = struct.unpack_from(order + "H", data, directory)
        for entry in range(entries):
            at = directory + 2 + 12 * entry
            if struct.unpack_from(order + "H", data, at)[0] == tag:
                struct.pack_into(order + "I", data, at + 4, many)
        assert failure(bytes(data)).kind is ErrorKind.IMAGE_UNREADABLE, tag
    for changes in (
        {277: ("I", [many])},
        {277: ("H", [65_535])},
        {256: ("I", [0])},
        {257: ("I", [many])},
        {273: ("I", [0] * 4)},
        {273: ("I", [many] * 4)},
        {273: None},
        {258: ("H", [0])},
        {278: ("I", [1])},
    ):
        kind = Kind(order=order, tags=changes)
        assert failure(write(samples, kind)).kind in (
            ErrorKind.IMAGE_UNREADABLE,
            ErrorKind.IMAGE_FORMAT,
            ErrorKind.IMAGE_TOO_LARGE,
        )
    mark = b"II*\0" if order == "<" else b"MM\0*"
    full = mark + struct.pack(order + "IH", 8, 65_535) + bytes(65_535 * 12)
    assert failure(full).kind is ErrorKind.IMAGE_UNREADABLE
    # A page that is its own successor.
    loop = bytearray(write(samples, Kind(order=order, tags={254: ("I", [1])})))
    loop[-4:] = loop[4:8]
    assert decode(bytes(loop)).shape == (17, 20, 3)


def test_the_tags_of_all_pages_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs time: an honest page has some twenty."""
    body = bytes([10]) * 4 + bytes([20]) * 16
    many = {40_000 + index: ("H", [0]) for index in range(100)}
    reduced = page(8, 2, 10, subfile=1)
    pages: list[dict[int, Any]] = [reduced | many] * 3 + [page(12, 4, 20)]
    monkeypatch.setattr(tiff_pages, "_MAX_ENTRIES", 400)
    assert decode(join(body, pages)).shape == (4, 4, 3)
    pages = [reduced | many] * 4 + [page(12, 4, 20)]
    assert decode(join(body, pages)).shape == (2, 2, 3)  # as if the file ended there
    monkeypatch.setattr(tiff_pages, "_MAX_ENTRIES", 8)
    assert "9 tags" in failure(join(body, [page(8, 2, 10, subfile=1, children=8)])).message


def strips(rows: int, body: bytes, sizes: list[int] | None, **tags: Any) -> bytes:
    """A picture of one column whose strips all start with the first byte of ``body``."""
    named: dict[int, Any] = {
        **{256: ("I", [1]), 257: ("I", [rows]), 258: ("H", [8]), 262: ("H", [1]), 259: ("H", [8])},
        **{273: ("I", [8] * rows), 278: ("I", [1]), 279: ("Q", sizes) if sizes else None},
    }
    return join(body, [named | {int(tag[1:]): value for tag, value in tags.items()}])


YCBCR_TAGS: Final[dict[str, Any]] = {
    **{"_259": ("H", [1]), "_262": ("H", [YCBCR]), "_277": ("H", [3]), "_258": ("H", [8] * 3)},
    "_530": ("H", [1, 1]),
}


def test_strips_of_uncompressed_ycbcr_are_checked() -> None:
    """They are copied, unlike other samples that are not compressed."""
    body = np.random.default_rng(0).bytes(100_000)
    error = failure(strips(100, body, [len(body)] * 100, **YCBCR_TAGS))
    assert "overlap" in error.message
    assert "sizes of its strips are missing" in failure(strips(9, body, None, **YCBCR_TAGS)).message
    error = failure(strips(9, body, [3] * 8 + [2**40], **YCBCR_TAGS))
    assert "outside the file" in error.message
    # Equal strips may share their bytes.
    assert decode(strips(100, body, [3] * 100, **YCBCR_TAGS)).shape == (100, 1, 3)


@pytest.mark.parametrize("size", [2**32, 2**62, 2**63 - 8, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("tags", [{}, YCBCR_TAGS])
def test_sizes_of_64_bits_do_not_overflow(size: int, tags: dict[str, Any]) -> None:
    for sizes in ([size] * 4, [3, 3, 3, size], [size] * 2 + [3] * 2):
        error = failure(strips(4, bytes(2000), sizes, **tags))
        assert "outside the file" in error.message or "cannot have" in error.message


def test_strips_that_share_all_bytes_are_refused() -> None:
    """A small file must not make the decoder read it a million times."""
    rows = 3000
    body = np.random.default_rng(0).bytes(200_000)
    tags: dict[int, Any] = {
        **{256: ("I", [1]), 257: ("I", [rows]), 258: ("H", [8]), 259: ("H", [5]), 262: ("H", [1])},
        **{273: ("I", [8] * rows), 278: ("I", [1]), 279: ("I", [len(body)] * rows)},
    }
    assert "overlap" in failure(join(body, [tags])).message
