"""UKB, the recognition benchmark of Nister and Stewenius (CVPR 2006)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from multigrain.data.benchmarks.benchmark import Benchmark
from multigrain.data.benchmarks.files import dataset_error, numbered_files
from multigrain.data.folder import ImageFolder

_NAME = re.compile(r"ukbench(\d{5})", re.ASCII)
IMAGES = 10_200
VIEWS = 4


def list_ukb(root: Path) -> Benchmark:
    """``root/**/ukbenchxxxxx.jpg``: four consecutive numbers, from a multiple of 4, are one object.

    Every image is a query and ranks all images, itself included. Some of the objects will do,
    but each with its four images.

    Raises:
        MultigrainError: DATASET.
    """
    files = numbered_files(root, root, _NAME)
    if not files.paths:
        raise dataset_error(
            f"{root} has no images named as in UKB (ukbench00000.jpg, ukbench00001.jpg, ...): give "
            "the folder that its archive was unpacked to"
        )
    numbers = np.array(list(files.paths))
    objects, labels, views = np.unique(numbers // VIEWS, return_inverse=True, return_counts=True)
    if (views != VIEWS).any():
        incomplete = objects[views != VIEWS]
        first = int(incomplete[0]) * VIEWS
        missing = next(n for n in range(first, first + VIEWS) if n not in files.paths)
        raise dataset_error(
            f"{len(incomplete)} of the {len(objects)} objects in {root} lack images: "
            f"ukbench{missing:05d} is the first that is missing. Each object needs its four "
            "images; add them, or remove the object's others"
        )
    whole = len(numbers) == IMAGES
    part = "the whole benchmark" if whole else f"a part of the benchmark's {IMAGES}"
    return Benchmark(
        task="ukb",
        folder=ImageFolder(
            root=root,
            classes=tuple(f"{number:05d}" for number in (objects * VIEWS).tolist()),
            paths=list(files.paths.values()),
            labels=labels.astype(np.int32),
        ),
        queries=np.arange(len(numbers)),
        database=np.ones(len(numbers), np.bool_),
        keeps_self=True,
        groups=len(objects),
        whole=whole,
        note=f"{len(objects)} objects, {len(numbers)} images: {part}",
        ignored=files.ignored,
    )
