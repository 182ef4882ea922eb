"""The evaluation transform that keeps the whole picture and its proportions."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multigrain.images.decode import DEFAULT_LIMITS, ImageLimits, decode_image
from multigrain.images.parameters import Preprocessing


def rect_size(width: int, height: int, largest: int) -> tuple[int, int]:
    """(width, height) after scaling the larger side to ``largest``; fractions are dropped, as
    in the published code, but never to less than one pixel. Small pictures are enlarged."""
    if width > height:
        return largest, max(1, largest * height // width)
    return max(1, largest * width // height), largest


def preprocess_rect(image: Image.Image, p: Preprocessing) -> NDArray[np.float32]:
    """Scales the larger side to ``p.size``, cuts nothing, normalizes.

    Args:
        image: RGB, decoded.
        p: size, interpolation and normalization; ``resize_short`` does not matter.

    Returns:
        float32 (3, H, W), contiguous, RGB; max(H, W) = size.
    """
    size = rect_size(*image.size, p.size)
    pixels = np.asarray(image.resize(size, RESAMPLING[p.interpolation]))
    return normalize(pixels, p.mean, p.std)


# MERGED: Encoded bytes -> the tensor a network sees. One function, for evaluation and for
# serving.


# Pixels of the decoded short side for one of the result, at least, where decoding scales. With 2
# the filter that follows still decides what the result looks like (as Pillow's reducing_gap).
_SPARE: Final = 2

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def preprocess(
    data: bytes, p: Preprocessing, limits: ImageLimits = DEFAULT_LIMITS
) -> NDArray[np.float32]:
    """Decodes, scales the short side to ``p.resize_short``, cuts the center, normalizes.

    A JPEG whose short side is at least four times ``p.resize_short`` is decoded at a fraction of
    its size, which leaves at least twice the pixels that are needed: against full decoding a
    photograph's pixels differ by less than one of 255 steps on average (tested); what that means
    for embeddings stands in benchmarks/RESULTS.md.

    Args:
        data: the encoded file.
        p: sizes, interpolation and normalization.
        limits: what the file may cost.

    Returns:
        float32 (3, size, size), contiguous, RGB.

    Raises:
        MultigrainError: of a kind IMAGE_*, see ``multigrain.images.decode.decode``.
    """
    return normalize(crop(data, p, limits), p.mean, p.std)


def crop(data: bytes, p: Preprocessing, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """``preprocess`` without its last step, normalizing; uint8 (size, size, 3), RGB.

    Raises:
        MultigrainError: as ``preprocess``.
    """
    return np.asarray(center_crop(decode_image(data, limits, shortest=_SPARE * p.resize_short), p))


def preprocess_image(image: Image.Image, p: Preprocessing) -> NDArray[np.float32]:
    """``preprocess`` of an already decoded image of mode RGB; float32 (3, size, size)."""
    return normalize(np.asarray(center_crop(image, p)), p.mean, p.std)


def center_crop(image: Image.Image, p: Preprocessing) -> Image.Image:
    """The center of the picture as ``size`` x ``size`` pixels.

    Scaling and cutting are one step: only the pixels of the cut are computed, so that neither
    a huge nor a very long, thin picture costs more than the result (scaling 1 x 20000 pixels
    to a short side of 256 first would make 1.3 billion). Where the cut is larger than
    the scaled short side, it is the largest centered square.
    """
    width, height = image.size
    short = min(width, height)
    side = short * min(1.0, p.size / p.resize_short)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, min(left + side, width), min(top + side, height))
    return image.resize((p.size, p.size), RESAMPLING[p.interpolation], box=box)


def normalize(
    pixels: NDArray[np.uint8],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (3, H, W) float32: (x / 255 - mean) / std.

    By a table of the 256 possible values: exactly rounded, and faster than arithmetic.
    """
    return apply_table(pixels, _table(mean, std))


def apply_table(
    pixels: NDArray[np.uint8],
    table: NDArray[np.float32],
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """(H, W, 3) uint8 and a table (3, 256) -> (3, H, W) float32, contiguous; into ``out``."""
    if out is None:
        out = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel in range(3):
        # mode="clip" spares the bounds check: an index of 8 bits cannot be out of range.
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
