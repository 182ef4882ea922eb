"""Image files for tests."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colored noise that JPEG preserves."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def corners(width: int = 40, height: int = 20) -> Image.Image:
    """Red at the top left, green top right, blue bottom left, white bottom right."""
    pixels: NDArray[np.uint8] = np.zeros((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    pixels[:top, :left] = (255, 0, 0)
    pixels[:top, left:] = (0, 255, 0)
    pixels[top:, :left] = (0, 0, 255)
    pixels[top:, left:] = (255, 255, 255)
    return Image.fromarray(pixels)
