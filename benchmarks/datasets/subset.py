"""Parts of an image folder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from multigrain.data.image_folder import ImageFolder


@dataclass(frozen=True)
class Split:
    """Images to train on, and others to look at the result with."""

    train: ImageFolder
    held_out: ImageFolder


def subset(folder: ImageFolder, chosen: NDArray[np.int64]) -> ImageFolder:
    """The chosen images, in the folder's order."""
    indices = np.sort(chosen)
    paths = [folder.paths[index] for index in indices.tolist()]
    return replace(folder, paths=paths, labels=folder.labels[indices])


def inner_split(folder: ImageFolder, share: float, seed: int) -> Split:
    """Sets a share of every class apart, drawn by the seed: for choosing hyper-parameters without
    a look at the images that the result is reported on."""
    rng = np.random.default_rng(seed)
    apart = []
    for label in np.unique(folder.labels).tolist():
        members = rng.permutation(np.flatnonzero(folder.labels == label))
        apart.append(members[: max(1, round(share * len(members)))])
    held_out = np.concatenate(apart)
    rest = np.setdiff1d(np.arange(len(folder)), held_out)
    return Split(subset(folder, rest), subset(folder, held_out))
