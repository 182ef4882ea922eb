"""Thousands of combinations of TIFF's tags: each is read rightly or refused by name.

What is right is computed from the samples that were written, by the definitions of TIFF 6.0, and
for a part of the files by ImageMagick too.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images import tiff
from multigrain.images.decode import decode
from tests.images.tiff_files import (
    BLACK_IS_ZERO,
    CMYK,
    PALETTE,
    RGB,
    WHITE_IS_ZERO,
    Kind,
    expected,
    write,
)

SIZE: Final = (17, 21)  # rows that end within a byte
BITS: Final = (1, 2, 4, 8, 12, 16)
ORDERS: Final[tuple[Literal["<", ">"], ...]] = ("<", ">")
# Name -> photometric interpretation, samples per pixel, meaning of the extra ones.
KINDS: Final[dict[str, tuple[int, int, tuple[int, ...] | None]]] = {
    "white-is-zero": (WHITE_IS_ZERO, 1, None),
    "white-is-zero + unspecified": (WHITE_IS_ZERO, 2, (0,)),
    "white-is-zero + opaque unspecified": (WHITE_IS_ZERO, 2, (0,)),
    "white-is-zero + associated": (WHITE_IS_ZERO, 2, (1,)),
    "white-is-zero + unassociated": (WHITE_IS_ZERO, 2, (2,)),
    "black-is-zero": (BLACK_IS_ZERO, 1, None),
    "black-is-zero + unspecified": (BLACK_IS_ZERO, 2, (0,)),
    "black-is-zero + opaque unspecified": (BLACK_IS_ZERO, 2, (0,)),
    "black-is-zero + opaque undescribed": (BLACK_IS_ZERO, 2, None),
    "black-is-zero + associated": (BLACK_IS_ZERO, 2, (1,)),
    "black-is-zero + unassociated": (BLACK_IS_ZERO, 2, (2,)),
    "RGB": (RGB, 3, None),
    "RGB + unspecified": (RGB, 4, (0,)),
    "RGB + opaque unspecified": (RGB, 4, (0,)),
    "RGB + opaque undescribed": (RGB, 4, None),
    "RGB + associated": (RGB, 4, (1,)),
    "RGB + unassociated": (RGB, 4, (2,)),
    "RGB + unspecified + unassociated": (RGB, 5, (0, 2)),
    "RGB + opaque unspecified + unassociated": (RGB, 5, (0, 2)),
    "RGB + associated + unspecified": (RGB, 5, (1, 0)),
    "RGB + associated + opaque unspecified": (RGB, 5, (1, 0)),
    "RGB + three unspecified": (RGB, 6, (0, 0, 0)),
    "RGB + three opaque unspecified": (RGB, 6, (0, 0, 0)),
    "palette": (PALETTE, 1, None),
    "palette + unspecified": (PALETTE, 2, (0,)),
    "palette + opaque unspecified": (PALETTE, 2, (0,)),
    "palette + associated": (PALETTE, 2, (1,)),
    "palette + unassociated": (PALETTE, 2, (2,)),
    "CMYK": (CMYK, 4, None),
    "CMYK + unspecified": (CMYK, 5, (0,)),
    "CMYK + opaque unspecified": (CMYK, 5, (0,)),
    "CMYK + associated": (CMYK, 5, (1,)),
    "CMYK + unassociated": (CMYK, 5, (2,)),
}
UNREAD: Final = (
    "white-is-zero + associated",
    "palette + associated",
    "CMYK + associated",
    # A channel of which nobody knows whether it is alpha, and which is not opaque.
    "white-is-zero + unspecified",
    "black-is-zero + unspecified",
    "RGB + unspecified",
    "RGB + unspecified + unassociated",
    "RGB + associated + unspecified",
    "RGB + three unspecified",
    "palette + unspecified",
    "CMYK + unspecified",
)
# Compression -> bits that are tried with predictor 2.
_PREDICTED_BITS: Final = {1: (8,), 5: BITS, 8: (16,), 32773: (8,), 50000: BITS}
PREDICTABLE: Final = (5, 8, 50000)


def combinations(name: str) -> Iterator[Kind]:
    photometric, count, extra = KINDS[name]
    planes = (False, True) if count > 1 else (False,)
    for bits, order, compression, tile, planar, predictor in itertools.product(
        BITS, ORDERS, (1, 5, 8, 32773, 50000), (None, (16, 16)), planes, (1, 2)
    ):
        if predictor == 2 and bits not in _PREDICTED_BITS[compression]:
            continue
        if compression in (8, 32773) and (bits < 8 or order == ">"):
            continue
        if compression == 50000 and order == ">":
            continue
        yield Kind(
            photometric=photometric,
            bits=bits,
            order=order,
            compression=compression,
            tile=tile,
            planar=planar,
            extra=extra,
            predictor=predictor,
        )


def refusal(name: str, kind: Kind) -> str | None:
    """Returns what names a kind that is not read; None if it must be read."""
    if 1 in (kind.extra or ()) and kind.photometric not in (BLACK_IS_ZERO, RGB):
        return "associated alpha and colors that are not gray or RGB"
    if kind.predictor == 2 and (kind.bits not in (8, 16) or kind.compression not in PREDICTABLE):
        return f"predictor 2 for {kind.bits}-bit samples"
    return "channel of unspecified meaning" if name in UNREAD else None


def drawn(name: str, kind: Kind, random: np.random.Generator) -> NDArray[Any]:
    """Returns random samples, colors multiplied by associated alpha, and both ends."""
    most = (1 << kind.bits) - 1
    photometric, count, _ = KINDS[name]
    colors = {RGB: 3, CMYK: 4}.get(photometric, 1)
    samples = random.integers(0, most + 1, (*SIZE, count))
    samples[0, 0], samples[0, 1] = 0, most
    extra = kind.extra or (0,) * (count - colors)
    for index, meaning in enumerate(extra, colors):
        if meaning == 0 and "opaque" in name:
            samples[:, :, index] = most
    if 1 in extra:
        alpha = count - len(extra) + extra.index(1)
        samples[:, :, : count - len(extra)] *= samples[:, :, alpha : alpha + 1]
        samples[:, :, : count - len(extra)] //= most
    return samples.astype(np.uint8 if kind.bits <= 8 else np.uint16)


def with_palette(kind: Kind, random: np.random.Generator) -> tuple[Kind, NDArray[Any] | None]:
    if kind.photometric != PALETTE:
        return kind, None
    table = random.integers(0, 65536, (3, 1 << kind.bits))
    table[:, :2] = 0, 65535
    return replace(kind, tags={320: ("H", table.reshape(-1).tolist())}), table


@pytest.mark.parametrize("name", KINDS)
def test_every_combination_is_read_rightly_or_refused_by_name(name: str) -> None:
    random = np.random.default_rng(0)
    wrong: list[str] = []
    read = refused = 0
    for kind in combinations(name):
        complete, table = with_palette(kind, random)
        samples = drawn(name, complete, random)
        problem = refusal(name, kind)
        try:
            pixels = decode(write(samples, complete))
        except MultigrainError as error:
            refused += 1
            named = problem is not None and problem in error.message
            if error.kind is not ErrorKind.IMAGE_FORMAT or not named:
                wrong.append(f"{kind}: {error}")
            continue
        read += 1
        difference = np.abs(pixels - np.rint(expected(samples, complete, table))).max()
        if problem or difference > 1:
            wrong.append(f"{kind}: differs by {difference}")
    assert not wrong, f"{len(wrong)} wrong: {wrong[:5]}"
    planes = 2 if KINDS[name][1] > 1 else 1
    assert (read, refused) == (
        (0, 116 * planes) if name in UNREAD else (86 * planes, 30 * planes)
    ), name


@pytest.mark.parametrize("at_once", [1, 150, 2500])
def test_pictures_that_are_converted_in_parts_are_the_same(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a row, of some rows of a tile, and of some rows of tiles."""
    random = np.random.default_rng(3)
    read = 0
    for name in KINDS:
        for kind in drawn_kinds(name, 8, random):
            complete, table = with_palette(kind, random)
            samples = drawn(name, complete, random)
            data = write(samples, complete)
            whole = decode(data)
            assert np.abs(whole - np.rint(expected(samples, complete, table))).max() <= 1
            with monkeypatch.context() as patch:
                patch.setattr(tiff, "_AT_ONCE", at_once)
                np.testing.assert_array_equal(decode(data), whole, f"{kind}")
            read += 1
    assert read == 176


@pytest.fixture(scope="module")
def imagemagick() -> str:
    program = shutil.which("mogrify")
    if program is None:
        assert "CI" not in os.environ, "CI must have ImageMagick (.ci/run installs it)"
        pytest.skip("needs ImageMagick: apt-get install imagemagick")
    return program


def test_tifffile_reads_the_samples_that_were_written() -> None:
    """So the files of this test are what they claim to be."""
    random = np.random.default_rng(2)
    for name in KINDS:
        for kind in drawn_kinds(name, 20, random):
            complete, _ = with_palette(kind, random)
            samples = drawn(name, complete, random)
            with tifffile.TiffFile(io.BytesIO(write(samples, complete))) as file:
                pixels = file.pages[0].asarray()
            if kind.planar and samples.shape[2] > 1:
                pixels = pixels.transpose(1, 2, 0)
            np.testing.assert_array_equal(pixels.reshape(samples.shape), samples, f"{kind}")


def drawn_kinds(name: str, count: int, random: np.random.Generator) -> list[Kind]:
    """Returns some of the combinations that are read."""
    kinds = [kind for kind in combinations(name) if refusal(name, kind) is None]
    return [kinds[index] for index in random.permutation(len(kinds))[:count]]


def known_to_imagemagick(name: str, kind: Kind) -> bool:
    """Whether ImageMagick 6.9 reads a kind rightly.

    It takes any extra sample for alpha. White-is-zero of 2, 4 and 12 bits becomes the negative (not
    so with libvips and libtiff's tiff2rgba), and of gray with a second sample it reads samples side
    by side of 8 and 16 bits only.
    """
    if 0 in (kind.extra or ()):
        return False
    if kind.photometric in (RGB, CMYK):
        return True
    if KINDS[name][1] == 2:
        chunky = not kind.planar and kind.bits in (8, 16)
        return chunky and kind.photometric == BLACK_IS_ZERO
    return kind.photometric != WHITE_IS_ZERO or kind.bits in (1, 8, 16)


def by_imagemagick(program: str, folder: Path, files: dict[str, bytes]) -> dict[str, Any]:
    """Returns ImageMagick's pixels of files of 21 x 17 pixels, by name."""
    for name, data in files.items():
        (folder / f"{name}.tif").write_bytes(data)
    options = "-quiet -colorspace sRGB -background white -alpha remove -depth 8 -format rgb"
    command = [program, *options.split(), *(f"{name}.tif" for name in files)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return {
        name: np.fromfile(folder / f"{name}.rgb", np.uint8).reshape(*SIZE, 3).astype(int)
        for name in files
    }


def test_imagemagick_reads_the_same(imagemagick: str, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    files: dict[str, bytes] = {}
    for name in KINDS:
        for kind in drawn_kinds(name, 40, random):
            if known_to_imagemagick(name, kind):
                complete, _ = with_palette(kind, random)
                samples = drawn(name, complete, random)
                files[f"{len(files)} {name} {kind.bits}"] = write(samples, complete)
    assert len(files) > 250
    pixels = by_imagemagick(imagemagick, tmp_path, files)
    wrong = {
        name: int(np.abs(decode(files[name]).astype(int) - pixels[name]).max()) for name in files
    }
    assert {name: value for name, value in wrong.items() if value > 1} == {}
