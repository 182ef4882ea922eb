"""Photographs of solar cells as an image dataset: 2,624 electroluminescence images of 300 px.

They come with the package ``elpv-dataset`` (Deitsch et al., Solar Energy 2019; CC BY-NC-SA 4.0, for
benchmarks only): ``pip install elpv-dataset==1.0.0.post1``.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np

_HELD_OUT = 0.25


def write_solar_cells(root: Path) -> None:
    """Writes ``train/<class>/``, ``val/<class>/`` and ``uncertain/``.

    The class is the material (mono- or polycrystalline) and whether the cell is defective. Cells
    that the experts were not sure about are in ``uncertain``, to be used as distractors.

    Raises:
        ModuleNotFoundError: without the package.
    """
    found = find_spec("elpv_dataset")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("pip install elpv-dataset==1.0.0.post1")
    data = Path(found.origin).parent / "data"
    random = np.random.default_rng(0)
    for line in (data / "labels.csv").read_text().splitlines():
        name, probability, material = line.split()
        if float(probability) in (0.0, 1.0):
            part = "val" if random.random() < _HELD_OUT else "train"
            state = "defective" if float(probability) else "good"
            folder = root / part / f"{material}-{state}"
        else:
            folder = root / "uncertain"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data / name, folder / Path(name).name)
