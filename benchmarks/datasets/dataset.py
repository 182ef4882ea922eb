"""The datasets of the convergence benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datasets.glyphs import font_of, instance_of, write_glyphs
from benchmarks.datasets.subset import inner_split
from examples.demo.digits import write_digits
from multigrain.data.held_out import Split
from multigrain.data.image_folder import ImageFolder, scan

DIGIT_SIZE = 32
# Input size for glyphs: at the files' 64 pixels a run takes four times as long.
GLYPH_SIZE = 32
INNER_SHARE = 0.2
# One training font per family.
_INNER_FONTS = ("DejaVuSans-BoldOblique", "DejaVuSansMono-Oblique", "STIXGeneralItalic", "cmr10")


@dataclass(frozen=True)
class Dataset:
    """A dataset and the settings of a job that uses it.

    Args:
        name: of the folder.
        settings: of the specification, without objective, optimizer and schedule.
        write: writes ``train`` and ``val`` into a folder.
        inner: splits the training images, to choose hyperparameters without using ``val``.
        group: file -> instance that it shows.
    """

    name: str
    settings: dict[str, Any]
    write: Callable[[Path], object]
    inner: Callable[[ImageFolder], Split]
    group: Callable[[str], str]

    def split(self, root: Path) -> Split:
        """The training and held-out images. Writes the files if they are missing."""
        folder = root / self.name
        ready = folder / "complete"
        if not ready.exists():
            self.write(folder)
            ready.touch()
        return Split(scan(folder / "train"), scan(folder / "val"))


def _digits(root: Path) -> object:
    return write_digits(root, DIGIT_SIZE)


def _random(folder: ImageFolder) -> Split:
    return inner_split(folder, INNER_SHARE, seed=0)


def _by_font(folder: ImageFolder) -> Split:
    inner = np.array([font_of(path) in _INNER_FONTS for path in folder.paths])
    return Split(folder.subset(np.flatnonzero(~inner)), folder.subset(np.flatnonzero(inner)))


def _itself(path: str) -> str:
    return path


_PLAIN = {
    "kind": "plain", "crop_scale_min": 0.7, "crop_ratio_min": 0.9, "crop_ratio_max": 1.11,
    "flip": 0.0, "rotation": 10.0,
}  # fmt: skip
_RESNET18 = {"trunk": "resnet18", "stem": "imagenet", "center_crop": 1.0}

DIGITS = Dataset(
    "digits",
    {"model": {**_RESNET18, "image_size": DIGIT_SIZE}, "augmentation": _PLAIN},
    _digits,
    _random,
    _itself,
)
GLYPHS = Dataset(
    "glyphs",
    {"model": {**_RESNET18, "image_size": GLYPH_SIZE}, "augmentation": _PLAIN},
    write_glyphs,
    _by_font,
    instance_of,
)
DATASETS = {dataset.name: dataset for dataset in (DIGITS, GLYPHS)}
