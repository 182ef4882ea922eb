"""A small real dataset and a real daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.e2e.daemon import Daemon

CLASSES = 4
TRAIN_PER_CLASS = 24
VAL_PER_CLASS = 6


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/`` and ``val/`` of four classes of real digit scans at 32 px."""
    root = tmp_path_factory.mktemp("digits")
    images, labels = load_digits(return_X_y=True)
    for label in range(CLASSES):
        chosen = images[labels == label][: TRAIN_PER_CLASS + VAL_PER_CLASS]
        for index, pixels in enumerate(chosen):
            split = "train" if index < TRAIN_PER_CLASS else "val"
            folder = root / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            grey = (pixels.reshape(8, 8) * 15).astype(np.uint8)
            picture = Image.fromarray(grey).resize((32, 32), Image.Resampling.BICUBIC)
            picture.convert("RGB").save(folder / f"{index:03d}.png")
    return root


@pytest.fixture
def daemon(tmp_path: Path, digits: Path) -> Iterator[Daemon]:
    """A running daemon that may read the dataset."""
    server = Daemon(tmp_path, roots=[digits]).start()
    yield server
    server.end()
