"""Subsets of an image folder."""

from __future__ import annotations

import numpy as np

from multigrain.data.held_out import Split
from multigrain.data.image_folder import ImageFolder


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
    return Split(folder.subset(rest), folder.subset(np.sort(held_out)))
