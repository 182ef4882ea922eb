"""The plot of the confusion matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multigrain.evaluate.results import plot_confusion

pytestmark = pytest.mark.mindspore


def blue(path: Path) -> float:
    """Fraction of pixels in the darkest blue."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return float((np.abs(pixels - (8, 48, 107)).max(axis=2) < 12).mean())


def test_correct_predictions_are_dark_on_the_diagonal(tmp_path: Path) -> None:
    names = ("a", "b$_", "a name that is far too long for the margin of a picture")
    plot_confusion(np.diag([5, 7, 1]), names, tmp_path / "right.png")
    plot_confusion(np.ones((3, 3), np.int64), names, tmp_path / "chance.png")
    right = blue(tmp_path / "right.png")
    # A third of the matrix, and the end of the color bar; by chance the end alone.
    assert right > 0.05
    assert blue(tmp_path / "chance.png") < right / 3


@pytest.mark.parametrize("shape", [(1, 1), (3, 6), (60, 60), (1000, 1001)])
def test_any_number_of_classes_is_plotted(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "confusion.png"
    counts = np.zeros(shape, np.int64)  # classes without images, too
    plot_confusion(counts, tuple(str(j) for j in range(shape[1])), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert max(image.size) < 2000
