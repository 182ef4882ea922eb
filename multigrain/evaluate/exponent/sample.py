"""A few images of each class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from multigrain.data.folder import ImageFolder


def draw(folder: ImageFolder, each: int, seed: int) -> NDArray[np.int64]:
    """Indices of ``each`` images of every class (all, of a class with fewer), ascending.

    Depends on the folder and the seed alone.
    """
    random = np.random.default_rng(seed)
    chosen = [
        random.permutation(of_class)[:each]
        for number in range(len(folder.classes))
        if len(of_class := np.flatnonzero(folder.labels == number))
    ]
    result: NDArray[np.int64] = np.sort(np.concatenate(chosen)).astype(np.int64)
    return result
