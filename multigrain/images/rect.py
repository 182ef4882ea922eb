"""The evaluation transform that keeps the whole picture and its proportions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import RESAMPLING, normalize


def rect_size(width: int, height: int, largest: int) -> tuple[int, int]:
    """(width, height) after scaling the larger side to ``largest``; fractions are dropped, as
    in the published code, but never to less than one pixel. Small pictures are enlarged."""
    if width > height:
        return largest, max(1, largest * height // width)
    return max(1, largest * width // height), largest


def preprocess_rect(image: Image.Image, p: Preprocessing) -> NDArray[np.float32]:
    """Scales the larger side to ``p.size``, cuts nothing, normalises.

    Args:
        image: RGB, decoded.
        p: size, interpolation and normalisation; ``resize_short`` does not matter.

    Returns:
        float32 (3, H, W), contiguous, RGB; max(H, W) = size.
    """
    size = rect_size(*image.size, p.size)
    pixels = np.asarray(image.resize(size, RESAMPLING[p.interpolation]))
    return normalize(pixels, p.mean, p.std)
