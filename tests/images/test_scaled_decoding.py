"""Reduced decoding of large JPEGs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.photographs import photographs
from multigrain.images.decode import decode_image
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess, preprocess_image
from tests.images.files import encode, noise

P = Preprocessing(size=56, resize_short=64)


def difference(data: bytes, p: Preprocessing) -> float:
    """Mean difference from full decoding, in steps of 1/255."""
    scaled, full = preprocess(data, p), preprocess_image(decode_image(data), p)
    steps = np.abs(scaled - full) * np.array(p.std)[:, None, None] * 255
    return float(steps.mean())


@pytest.mark.parametrize(
    ("size", "shortest", "expected"),
    [
        ((400, 300), 0, (400, 300)),
        ((400, 300), 151, (400, 300)),
        ((400, 300), 150, (200, 150)),
        ((400, 300), 75, (100, 75)),
        ((300, 400), 150, (150, 200)),
        ((400, 304), 1, (50, 38)),  # an eighth is the largest reduction
        ((400, 300), 1, (100, 75)),  # 37.5 is not an integer
        ((401, 300), 128, (401, 300)),
    ],
)
def test_the_short_side_keeps_the_requested_length(
    size: tuple[int, int], shortest: int, expected: tuple[int, int]
) -> None:
    data = encode(noise(*size), "JPEG")
    assert decode_image(data, shortest=shortest).size == expected


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_are_decoded_at_full_size(form: str) -> None:
    assert decode_image(encode(noise(400, 300), form), shortest=10).size == (400, 300)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_gray_and_cmyk_are_reduced_too(mode: str) -> None:
    data = encode(noise(400, 300).convert(mode), "JPEG", quality=95)
    assert decode_image(data, shortest=100).size == (200, 150)
    assert difference(data, P) < 0.5


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_reduced_image_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise(600, 400, seed=3), "JPEG", exif=exif, quality=95)
    turned = decode_image(data, shortest=200)
    assert turned.size == ((200, 300) if orientation in (6, 8) else (300, 200))
    assert difference(data, P) < 0.5


def test_photographs_differ_by_less_than_a_step_on_average() -> None:
    """500 x 400 at a half for a short side of 100: the least spare pixels."""
    p = Preprocessing(size=88, resize_short=100)
    found = [difference(data, p) for data in photographs(7)[2::4]]
    assert len(found) == 2
    assert min(found) > 0
    assert max(found) < 1


def test_a_photograph_near_its_final_size_is_decoded_exactly() -> None:
    p = Preprocessing.standard(224)
    for data in photographs(2):
        np.testing.assert_array_equal(preprocess(data, p), preprocess_image(decode_image(data), p))
