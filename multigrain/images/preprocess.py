"""Preprocessing: encoded bytes to the network's input, the same in evaluation and serving.

Two transforms: a center crop, and "rect", which keeps the whole image and its aspect ratio.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multigrain.images.decode import decode_image
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits
from multigrain.images.parameters import Preprocessing

# A JPEG is decoded at a fraction of its size only if its short side keeps this multiple of the
# needed pixels. With 2 the quality is still that of the following resize (like Pillow's
# reducing_gap).
_REDUCING_GAP: Final = 2

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def preprocess(
    data: bytes, p: Preprocessing, limits: ImageLimits = DEFAULT_LIMITS
) -> NDArray[np.float32]:
    """Decodes, resizes the short side to ``p.resize_short``, crops the center, normalizes.

    A JPEG whose short side is at least four times ``p.resize_short`` is decoded at a fraction of
    its size, which leaves at least twice the needed pixels: a photograph's pixels differ from full
    decoding by less than one of 255 steps on average (tested). docs/benchmarks.md has the effect
    on embeddings.

    Args:
        data: the encoded file.
        p: sizes, interpolation and normalization.
        limits: limits of the file.

    Returns:
        float32 (3, size, size), contiguous, RGB.

    Raises:
        MultigrainError: of a kind IMAGE_*, see ``multigrain.images.decode.decode``.
    """
    return normalize(crop(data, p, limits), p.mean, p.std)


def crop(data: bytes, p: Preprocessing, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Like :func:`preprocess` without normalization: uint8 (size, size, 3), RGB.

    Raises:
        MultigrainError: as ``preprocess``.
    """
    image = decode_image(data, limits, shortest=_REDUCING_GAP * p.resize_short)
    return np.asarray(center_crop(image, p))


def preprocess_image(image: Image.Image, p: Preprocessing) -> NDArray[np.float32]:
    """Preprocesses a decoded image of mode RGB: float32 (3, size, size)."""
    return normalize(np.asarray(center_crop(image, p)), p.mean, p.std)


def center_crop(image: Image.Image, p: Preprocessing) -> Image.Image:
    """Resizes the image and crops its center to ``size`` x ``size`` pixels.

    Resizing and cropping are one step: only the pixels of the crop are computed, so that a huge
    or very long image costs no more than the result (resizing 1 x 20000 pixels to a short side
    of 256 would make 1.3 billion). If the crop is larger than the resized short side, it is the
    largest centered square.
    """
    width, height = image.size
    short = min(width, height)
    side = short * min(1.0, p.size / p.resize_short)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, min(left + side, width), min(top + side, height))
    return image.resize((p.size, p.size), RESAMPLING[p.interpolation], box=box)


def rect_size(width: int, height: int, largest: int) -> tuple[int, int]:
    """Returns (width, height) after scaling the larger side to ``largest``.

    Fractions are truncated, as in the published code, but to at least one pixel. Small images
    are enlarged.
    """
    if width > height:
        return largest, max(1, largest * height // width)
    return max(1, largest * width // height), largest


def preprocess_rect(image: Image.Image, p: Preprocessing) -> NDArray[np.float32]:
    """Resizes the larger side to ``p.size`` without a crop, and normalizes.

    Args:
        image: decoded, RGB.
        p: size, interpolation and normalization; ``resize_short`` is not used.

    Returns:
        float32 (3, H, W), contiguous, RGB; max(H, W) = size.
    """
    size = rect_size(*image.size, p.size)
    pixels = np.asarray(image.resize(size, RESAMPLING[p.interpolation]))
    return normalize(pixels, p.mean, p.std)


def normalize(
    pixels: NDArray[np.uint8],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> NDArray[np.float32]:
    """Normalizes (H, W, 3) uint8 to (3, H, W) float32: (x / 255 - mean) / std.

    Uses a table of the 256 possible values, which is exactly rounded and faster than arithmetic.
    """
    return apply_table(pixels, _table(mean, std))


def apply_table(
    pixels: NDArray[np.uint8],
    table: NDArray[np.float32],
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Maps (H, W, 3) uint8 by a (3, 256) table to (3, H, W) float32, into ``out`` if given."""
    if out is None:
        out = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel in range(3):
        # mode="clip" skips the bounds check: an index of 8 bits cannot be out of range.
        np.take(table[channel], pixels[:, :, channel], out=out[channel], mode="clip")
    return out


@lru_cache(maxsize=16)
def _table(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    values = np.arange(256) / 255
    rows = [(values - m) / s for m, s in zip(mean, std, strict=True)]
    table: NDArray[np.float32] = np.stack(rows).astype(np.float32)
    return table
