"""Subsets of an image folder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from multigrain.data.image_folder import ImageFolder


@dataclass(frozen=True)
class Split:
    """Training images and held-out images."""

    train: ImageFolder
    held_out: ImageFolder


def subset(folder: ImageFolder, chosen: NDArray[np.int64]) -> ImageFolder:
    """The chosen images in the order of the folder."""
    indices = np.sort(chosen)
    paths = [folder.paths[index] for index in indices.tolist()]
    return replace(folder, paths=paths, labels=folder.labels[indices])


def inner_split(folder: ImageFolder, share: float, seed: int) -> Split:
    """Holds out a random share of every class, to choose hyperparameters without using the images
    on which results are reported."""
    rng = np.random.default_rng(seed)
    held_out_parts = []
    for label in np.unique(folder.labels).tolist():
        members = rng.permutation(np.flatnonzero(folder.labels == label))
        held_out_parts.append(members[: max(1, round(share * len(members)))])
    held_out = np.concatenate(held_out_parts)
    rest = np.setdiff1d(np.arange(len(folder)), held_out)
    return Split(subset(folder, rest), subset(folder, held_out))
