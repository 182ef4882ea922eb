"""Preprocessing of image files."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import center_crop, normalize, preprocess
from tests.images.files import encode, noise


def test_the_result_is_contiguous_float32_channels_first() -> None:
    result = preprocess(encode(noise(60, 40), "JPEG"), Preprocessing.standard(32))
    assert result.shape == (3, 32, 32)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous


def test_values_follow_the_formula() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    result = normalize(pixels, mean, std)
    for channel in range(3):
        for value in range(256):
            expected = (value / 255 - mean[channel]) / std[channel]
            assert result[channel, value // 16, value % 16] == np.float32(expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(96, 64), (64, 96), (65, 64)])
def test_the_result_equals_resize_then_crop(interpolation: str, size: tuple[int, int]) -> None:
    """Up to 8-bit rounding, if the resized long side is an integer."""
    p = Preprocessing(size=28, resize_short=32, interpolation=interpolation)  # type: ignore[arg-type]
    image = noise(*size)
    method = Image.Resampling[interpolation.upper()]
    width, height = (round(side * 32 / min(size)) for side in size)
    scaled = image.resize((width, height), method)
    left, top = (width - 28) // 2, (height - 28) // 2
    expected = np.asarray(scaled.crop((left, top, left + 28, top + 28))).astype(int)
    got = np.asarray(center_crop(image, p)).astype(int)
    tolerance = 1 if 65 not in size else 12  # shifted by half a pixel, because 32.5 is rounded
    assert np.abs(got - expected).max() <= tolerance


@pytest.mark.parametrize(
    ("size", "short"), [(224, 256), (500, 571), (800, 914), (300, 342), (32, 36)]
)
def test_the_short_side_is_that_of_the_published_evaluation(size: int, short: int) -> None:
    """int(256 / 224 * size): 342 for 300."""
    assert Preprocessing.standard(size) == Preprocessing(size=size, resize_short=short)
    assert Preprocessing.standard(size, center_crop=1.0).resize_short == size


def test_an_image_of_the_right_size_is_unchanged() -> None:
    image = noise(32, 32)
    p = Preprocessing(size=32, resize_short=32)
    np.testing.assert_array_equal(np.asarray(center_crop(image, p)), np.asarray(image))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_tiny_and_thin_images_work(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (255, 0, 0))
    result = preprocess(encode(image, "PNG"), Preprocessing.standard(224))
    assert result.shape == (3, 224, 224)
    np.testing.assert_allclose(result[0], (1 - 0.485) / 0.229, rtol=1e-6)


def test_a_long_thin_image_costs_no_more_than_its_result() -> None:
    """Resized to a short side of 256 it would have 1.3 billion pixels."""
    data = encode(Image.new("RGB", (20_000, 1)), "PNG")
    # CPU time of this thread, independent of other load.
    start = time.thread_time()
    preprocess(data, Preprocessing.standard(224))
    assert time.thread_time() - start < 1.0


def test_a_crop_larger_than_the_resized_side_is_the_whole_square() -> None:
    image = noise(64, 32)
    p = Preprocessing(size=32, resize_short=16)
    expected = image.crop((16, 0, 48, 32))
    np.testing.assert_array_equal(np.asarray(center_crop(image, p)), np.asarray(expected))
