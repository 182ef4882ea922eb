"""A distorted copy of a picture, as copy detection has to see through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


def distorted(picture: Image, seed: int) -> Image:
    """Rotated by up to 15 degrees, cropped to 85-100 %, brightened or darkened by up to 30 %,
    and with noise of 12 grey levels."""
    from PIL import Image as PilImage
    from PIL import ImageEnhance

    chance = np.random.default_rng(seed)
    width, height = picture.size
    turned = picture.rotate(chance.uniform(-15, 15), PilImage.Resampling.BICUBIC)
    keep = chance.uniform(0.85, 1.0)
    left = chance.uniform(0, 1 - keep) * width
    top = chance.uniform(0, 1 - keep) * height
    box = (left, top, left + keep * width, top + keep * height)
    cut = turned.resize((width, height), PilImage.Resampling.BICUBIC, box=box)
    lit = ImageEnhance.Brightness(cut).enhance(chance.uniform(0.7, 1.3))
    noise = chance.normal(0, 12, (height, width, 1))
    noisy = np.clip(np.asarray(lit.convert("RGB")) + noise, 0, 255)
    return PilImage.fromarray(noisy.astype(np.uint8))
