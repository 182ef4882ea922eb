"""The user's own groups of images that belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from multigrain.data.benchmarks.benchmark import Benchmark
from multigrain.data.benchmarks.files import dataset_error
from multigrain.data.folder import ImageFolder, scan


def list_groups(root: Path, queries: Literal["all", "first"] = "all") -> Benchmark:
    """``root/<group>/**/<image>``: a query ranks all images but itself; see ``of_folder``.

    Raises:
        MultigrainError: DATASET.
    """
    return of_folder(scan(root), queries)


def of_folder(folder: ImageFolder, queries: Literal["all", "first"] = "all") -> Benchmark:
    """The groups of an image folder: its classes.

    An image that is alone in its group is only ranked.

    Args:
        folder: the images, those of a group next to each other, in the order of their paths.
        queries: all images, or the first of each group.

    Raises:
        MultigrainError: DATASET if no group has two images.
    """
    sizes = np.bincount(folder.labels, minlength=len(folder.classes))
    candidates = np.arange(len(folder))
    if queries == "first":
        candidates = np.unique(folder.labels, return_index=True)[1]
        candidates.sort()
    chosen = candidates[sizes[folder.labels[candidates]] > 1]
    if not len(chosen):
        raise dataset_error(
            f"no sub-folder of {folder.root} has two images: put images that belong together into "
            "one sub-folder a group"
        )
    groups = int((sizes > 1).sum())
    alone = int((sizes == 1).sum())
    return Benchmark(
        task="groups",
        folder=folder,
        queries=chosen.astype(np.int64),
        database=np.ones(len(folder), np.bool_),
        keeps_self=False,
        groups=groups,
        whole=None,
        note=f"{len(chosen)} queries of {groups} groups, {len(folder)} images"
        + (f", {alone} of them alone in their group" if alone else ""),
    )
