"""The limits of one image file: the same for training, evaluation, export and serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class ImageLimits:
    """Limits of an encoded image.

    The daemon sets both for its engines and its jobs (``serving.max_image_bytes`` and
    ``serving.max_image_pixels``).

    Args:
        max_bytes: largest encoded size in bytes.
        max_pixels: largest width x height, checked in the header before decoding.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000


DEFAULT_LIMITS: Final = ImageLimits()
