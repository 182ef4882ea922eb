"""What a retrieval benchmark is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multigrain.data.folder import ImageFolder
from multigrain.spec.evaluation import Task


@dataclass(frozen=True)
class Benchmark:
    """Images, the queries among them, and what each should find.

    A query ranks the images of the database; its positives are those of its own group.

    Args:
        task: whose protocol it is.
        folder: the images; ``labels`` are their groups.
        queries: (Q,) indices of images, ascending.
        database: (N,) the images that are ranked.
        keeps_self: whether a query that is in the database ranks itself too.
        groups: how many groups have a query.
        whole: whether these are all the images of the published benchmark; None for the user's
            own data.
        note: what was found, in words.
        ignored: images in the folder that are not of the benchmark.
    """

    task: Task
    folder: ImageFolder
    queries: NDArray[np.int64]
    database: NDArray[np.bool_]
    keeps_self: bool
    groups: int
    whole: bool | None
    note: str
    ignored: int = 0

    def __len__(self) -> int:
        return len(self.folder)
