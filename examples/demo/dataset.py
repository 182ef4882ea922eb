"""The UCI handwritten digits as image files: 1,797 scans of 8 x 8 pixels, shipped inside
scikit-learn (https://doi.org/10.24432/C50P49)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multigrain_client.errors import MissingPackage

# Share held out, and the seed of the split: fixed, so that every run holds out the same scans.
HELD_OUT = 0.2
SPLIT_SEED = 0
# The scans count ink in a 4 x 4 square: 0..16.
INK_LEVELS = 16


@dataclass(frozen=True)
class DigitFolders:
    """What was written: ``train/<class>/*.png`` and ``val/<class>/*.png``."""

    train: Path
    val: Path
    train_images: int
    val_images: int

    def held_out(self) -> list[Path]:
        """Files of ``val`` in a fixed order."""
        return sorted(self.val.glob("*/*.png"))


def write_digits(root: Path, size: int) -> DigitFolders:
    """Writes the digits as RGB PNG files of ``size`` x ``size`` pixels, split 80/20 within
    each class.

    Raises:
        MissingPackage: without scikit-learn or Pillow.
    """
    try:
        from PIL import Image
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingPackage(
            "the demo needs scikit-learn and Pillow: pip install 'multigrain[server,demo]'"
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
            scan = Image.fromarray(np.rint(ink).astype(np.uint8))
            picture = scan.resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
            picture.save(folder / f"digit-{index:04d}.png")
    return DigitFolders(root / "train", root / "val", len(train), len(held_out))
