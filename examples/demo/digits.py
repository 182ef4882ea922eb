"""The UCI handwritten digits as image files, and distorted copies of them.

1,797 scans of 8 x 8 pixels, shipped with scikit-learn (https://doi.org/10.24432/C50P49).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from multigrain_client.errors import MissingPackage

if TYPE_CHECKING:
    from PIL.Image import Image

# Share of held-out images and seed of the split: fixed, so every run holds out the same scans.
HELD_OUT = 0.2
SPLIT_SEED = 0
# A scan's pixel counts the inked pixels of a 4 x 4 square: 0..16.
INK_LEVELS = 16


@dataclass(frozen=True)
class DigitFolders:
    """The files written: ``train/<class>/*.png`` and ``val/<class>/*.png``."""

    train: Path
    val: Path
    train_images: int
    val_images: int

    def held_out(self) -> list[Path]:
        """The files of ``val``, sorted."""
        return sorted(self.val.glob("*/*.png"))


def write_digits(root: Path, size: int) -> DigitFolders:
    """Writes the digits as RGB PNG files of ``size`` x ``size`` pixels, split 80/20 within
    each class.

    Raises:
        MissingPackage: without scikit-learn or Pillow.
    """
    try:
        from PIL import Image as PilImage
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingPackage(
            "the demo needs scikit-learn and Pillow: pip install '.[server,demo]'"
        ) from error
    digits = load_digits()
    labels = np.asarray(digits.target)
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=SPLIT_SEED
    )
    for split, indices in (("train", train), ("val", held_out)):
        for index in sorted(int(i) for i in indices):
            folder = root / split / str(int(labels[index]))
            folder.mkdir(parents=True, exist_ok=True)
            ink = np.asarray(digits.images[index]) * (255 / INK_LEVELS)
            scan = PilImage.fromarray(np.rint(ink).astype(np.uint8))
            picture = scan.resize((size, size), PilImage.Resampling.BICUBIC).convert("RGB")
            picture.save(folder / f"digit-{index:04d}.png")
    return DigitFolders(root / "train", root / "val", len(train), len(held_out))


def distort(picture: Image, seed: int) -> Image:
    """A copy that is rotated by up to 15 degrees, cropped to 85-100 %, brightened or darkened by
    up to 30 %, with noise of 12 gray levels."""
    from PIL import Image as PilImage
    from PIL import ImageEnhance

    rng = np.random.default_rng(seed)
    width, height = picture.size
    rotated = picture.rotate(rng.uniform(-15, 15), PilImage.Resampling.BICUBIC)
    keep = rng.uniform(0.85, 1.0)
    left = rng.uniform(0, 1 - keep) * width
    top = rng.uniform(0, 1 - keep) * height
    box = (left, top, left + keep * width, top + keep * height)
    cropped = rotated.resize((width, height), PilImage.Resampling.BICUBIC, box=box)
    adjusted = ImageEnhance.Brightness(cropped).enhance(rng.uniform(0.7, 1.3))
    noise = rng.normal(0, 12, (height, width, 1))
    noisy = np.clip(np.asarray(adjusted.convert("RGB")) + noise, 0, 255)
    return PilImage.fromarray(noisy.astype(np.uint8))
