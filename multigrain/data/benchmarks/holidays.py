"""INRIA Holidays (Jegou, Douze, Schmid, ECCV 2008)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from multigrain.data.benchmarks.benchmark import Benchmark
from multigrain.data.benchmarks.files import dataset_error, numbered_files
from multigrain.data.folder import ImageFolder

_NAME = re.compile(r"(1\d{5})", re.ASCII)
GROUPS, IMAGES = 500, 1491


def list_holidays(root: Path) -> Benchmark:
    """``root/**/1xxxxx.jpg``: an image's group is its number / 100, a group's query ends in 00.

    A query ranks all images but itself. A part of the benchmark will do: images of groups
    without a query are only ranked, and a query that is alone in its group is none.

    Raises:
        MultigrainError: DATASET.
    """
    files = numbered_files(root, root, _NAME)
    if not files.paths:
        raise dataset_error(
            f"{root} has no images named as in INRIA Holidays (100000.jpg, 100001.jpg, "
            "100100.jpg, ...): give the folder that its archives were unpacked to"
        )
    numbers = np.array(list(files.paths))
    names, labels, sizes = np.unique(numbers // 100, return_inverse=True, return_counts=True)
    queries = np.flatnonzero((numbers % 100 == 0) & (sizes[labels] > 1))
    if not len(queries):
        raise dataset_error(
            f"{root} has no query: of at least one group it needs the image ending in 00 and "
            "another (100000.jpg and 100001.jpg, say)"
        )
    whole = (len(queries), len(names), len(numbers)) == (GROUPS, GROUPS, IMAGES)
    part = "the whole benchmark" if whole else f"a part of the benchmark's {IMAGES}"
    return Benchmark(
        task="holidays",
        folder=ImageFolder(
            root=root,
            classes=tuple(str(name) for name in names),
            paths=list(files.paths.values()),
            labels=labels.astype(np.int32),
        ),
        queries=queries,
        database=np.ones(len(numbers), np.bool_),
        keeps_self=False,
        groups=len(queries),
        whole=whole,
        note=f"{len(queries)} queries of {len(names)} groups, {len(numbers)} images: {part}",
        ignored=files.ignored,
    )
