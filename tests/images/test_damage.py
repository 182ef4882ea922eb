"""Damaged and unfamiliar files of every format: clear errors, and nothing from inside a library."""

from __future__ import annotations

import random
import re
from functools import cache

import numpy as np
import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.decode import decode_image, image_size
from multigrain.images.limits import ImageLimits
from tests.fuzz.mutate import mutated
from tests.images.files import CASES, encode, noise
from tests.images.lossless_jpeg import lossless
from tests.images.test_bmp import bmp, random_values, runs, stored
from tests.images.test_heif import avif, heic
from tests.images.test_webp import extended, frame, riff

# Words of Pillow, its codecs, numpy and Python that no user should read.
INSIDE = re.compile(
    r"Pillow|PIL\b|BytesIO|decoder|broken data|cannot identify|numpy|array|tuple|NoneType|libheif"
    r"|libavif|object|Error|\bmode\b|0x|unpack|struct|codec|\bim\b|index out|range",
)
LIMITS = ImageLimits(max_bytes=1 << 20, max_pixels=200_000)


@cache
def corpus() -> dict[str, bytes]:
    image = noise(24, 20)
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    values = random_values((24, 20), 8).astype(np.uint8)
    files = {form: encode(image, form) for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")}
    files |= {
        "AVIF": avif(image),
        "HEIC": heic(image),
        "lossless JPEG": lossless(np.asarray(image)[:9, :9]),
        "progressive JPEG": encode(image, "JPEG", progressive=True),
        "CMYK JPEG": encode(image.convert("CMYK"), "JPEG"),
        "gray PNG": encode(image.convert("1"), "PNG"),
        "palette PNG": encode(image.quantize(9), "PNG"),
        "BMP with runs": bmp(
            runs(values, 8, literal=True), (24, 20), 8, compression=1, palette=palette
        ),
        "BMP with fields": bmp(
            stored(random_values((24, 20), 32), 32),
            (24, 20),
            32,
            header=124,
            compression=3,
            masks=(0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        ),
        "animated WebP": riff(
            extended((24, 20), 2), (b"ANIM", bytes(6)), frame(image, (0, 0)), frame(image, (0, 0))
        ),
    }
    files |= {path.name: path.read_bytes() for path in sorted(CASES.iterdir())}
    return {name: data for name, data in files.items() if len(data) < 40_000}


def check(data: bytes) -> None:
    for shortest in (0, 4):
        try:
            image = decode_image(data, LIMITS, shortest=shortest)
        except MultigrainError as error:
            assert error.kind in (  # noqa: PT017
                ErrorKind.IMAGE_UNREADABLE,
                ErrorKind.IMAGE_FORMAT,
                ErrorKind.IMAGE_TOO_LARGE,
            )
            assert INSIDE.search(error.message) is None, error.message  # noqa: PT017
            if error.kind is ErrorKind.IMAGE_FORMAT:
                assert "whole file" not in error.message  # noqa: PT017
        else:
            assert image.mode == "RGB"
            if not shortest:
                assert image_size(data, LIMITS) == image.size


@pytest.mark.parametrize("name", corpus())
def test_damaged_files_have_clear_errors(name: str) -> None:
    data = corpus()[name]
    chance = random.Random(name)
    for _ in range(120):
        check(mutated(data, chance))
    for _ in range(60):  # cut, and one byte changed in the header
        check(data[: chance.randrange(len(data))])
        at = chance.randrange(min(200, len(data)))
        check(data[:at] + bytes((chance.randrange(256),)) + data[at + 1 :])


@pytest.mark.parametrize("name", corpus())
def test_two_files_in_one_and_a_start_that_is_missing_have_clear_errors(name: str) -> None:
    data = corpus()[name]
    for changed in (data + data, data[:40] + data, data[1:], data[16:], b"\n" + data, data[::-1]):
        check(changed)
