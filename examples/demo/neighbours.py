"""Queries and their nearest neighbours among the held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from multigrain_client.answers import Classification, FloatArray

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Neighbour:
    """One answer of a query: its file, its class, and the cosine of the two vectors."""

    path: Path
    cosine: float
    is_original: bool = False

    @property
    def label(self) -> str:
        return self.path.parent.name


@dataclass(frozen=True)
class Query:
    """A picture that was searched for, what the classifier says of it, and what was found."""

    source: Path
    picture: Image
    is_copy: bool
    answer: Classification
    neighbours: tuple[Neighbour, ...]

    @property
    def label(self) -> str:
        return self.source.parent.name


def pick_one_a_class(paths: Sequence[Path], seed: int = 0) -> list[int]:
    """Index of one path of each class, by chance alone."""
    chance = np.random.default_rng(seed)
    by_class: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        by_class.setdefault(path.parent.name, []).append(index)
    return [int(chance.choice(by_class[name])) for name in sorted(by_class)]


def nearest(
    vector: FloatArray,
    gallery: FloatArray,
    paths: Sequence[Path],
    *,
    count: int,
    itself: int,
    is_copy: bool,
) -> tuple[Neighbour, ...]:
    """The ``count`` gallery images of the greatest cosine.

    Args:
        vector: float32 (D,), normalised.
        gallery: float32 (N, D), normalised.
        itself: index of the query's source. A distorted copy may find it (that is the point);
            an undistorted query may not.
    """
    cosines = gallery @ vector
    if not is_copy:
        cosines[itself] = -np.inf
    order = np.argsort(-cosines, kind="stable")[:count]
    return tuple(
        Neighbour(paths[index], float(cosines[index]), is_copy and int(index) == itself)
        for index in order
    )
