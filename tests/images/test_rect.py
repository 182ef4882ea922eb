"""The transform "rect"."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from multigrain.errors import MultigrainError
from multigrain.images.decode import decode_image, image_size
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess_rect, rect_size
from tests.images.files import corners, encode, noise


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 768), (500, 375)),
        ((768, 1024), (375, 500)),
        ((300, 300), (500, 500)),
        ((100, 67), (500, 335)),  # enlarged
        ((1000, 335), (500, 167)),  # 167.5 is truncated
        ((335, 1000), (167, 500)),
        ((20_000, 3), (500, 1)),
    ],
)
def test_the_larger_side_becomes_the_resolution(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert rect_size(*size, 500) == expected


def test_the_whole_image_is_kept_and_normalized() -> None:
    p = Preprocessing(size=20, resize_short=23, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    tensor = preprocess_rect(corners(40, 20), p)
    assert (tensor.shape, tensor.dtype) == ((3, 10, 20), np.float32)
    for (row, column), color in {
        (0, 0): (1, -1, -1), (0, -1): (-1, 1, -1), (-1, 0): (-1, -1, 1), (-1, -1): (1, 1, 1),
    }.items():  # fmt: skip
        np.testing.assert_allclose(tensor[:, row, column], color, atol=1e-6)


def test_the_result_equals_pillows_resize() -> None:
    image = noise(60, 41)
    p = Preprocessing(size=30, resize_short=30, mean=(0, 0, 0), std=(1, 1, 1))
    expected = np.asarray(image.resize((30, 20), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(preprocess_rect(image, p), expected.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(9))
def test_image_size_is_that_of_the_upright_image(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise(31, 17), form, exif=exif)
    assert image_size(data) == decode_image(data).size


def test_image_size_refuses_other_files() -> None:
    with pytest.raises(MultigrainError):
        image_size(b"nothing")
