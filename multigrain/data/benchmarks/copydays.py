"""INRIA Copydays, strong attacks, with distractors (Douze et al., CIVR 2009)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from multigrain.data.benchmarks.benchmark import Benchmark
from multigrain.data.benchmarks.files import dataset_error, image_paths, numbered_files
from multigrain.data.folder import ImageFolder

_NAME = re.compile(r"(\d{6})", re.ASCII)
ORIGINALS, STRONG = 157, 229
_ORIGINAL_FOLDERS = ("original", "originals")
_STRONG_FOLDER = "strong"
_DISTRACTOR_FOLDER = "distractors"


def list_copydays(root: Path) -> Benchmark:
    """``root/original/20xx00.jpg``, ``root/strong/20xxyy.jpg`` and ``root/distractors/**``.

    A strong image is a query; it ranks the originals and the distractors (any images; the folder
    may be missing), never other queries. Its one positive is the original of the same number
    / 100.

    Raises:
        MultigrainError: DATASET.
    """
    original = next((n for n in _ORIGINAL_FOLDERS if (root / n).is_dir()), None)
    if original is None or not (root / _STRONG_FOLDER).is_dir():
        missing = "original" if original is None else _STRONG_FOLDER
        raise dataset_error(
            f"{root} has no folder {missing!r}: Copydays needs the sub-folders 'original' "
            "(200000.jpg, 200100.jpg, ...), 'strong' (200001.jpg, ...) and, for distractors, "
            "'distractors' (any images)"
        )
    originals = numbered_files(root, root / original, _NAME)
    strong = numbered_files(root, root / _STRONG_FOLDER, _NAME)
    for name, files in ((original, originals), (_STRONG_FOLDER, strong)):
        if not files.paths:
            raise dataset_error(
                f"{root / name} has no images named as in Copydays (six digits: 200000.jpg)"
            )
    blocks = _blocks(originals.paths)
    orphans = [path for number, path in strong.paths.items() if number // 100 not in blocks]
    if orphans:
        raise dataset_error(
            f"{len(orphans)} of the strong images in {root} have no original of the same number "
            f"/ 100, the first is {orphans[0]}: add the originals, or remove these"
        )
    distractors: list[str] = []
    if (root / _DISTRACTOR_FOLDER).is_dir():
        distractors = image_paths(root, root / _DISTRACTOR_FOLDER)
    none = len(blocks)  # the group of no query
    labels = [blocks[number // 100] for number in (*originals.paths, *strong.paths)]
    first = len(originals.paths)
    database = np.ones(first + len(strong.paths) + len(distractors), np.bool_)
    queries = np.arange(first, first + len(strong.paths))
    database[queries] = False
    whole = (len(originals.paths), len(strong.paths)) == (ORIGINALS, STRONG)
    part = "the whole benchmark" if whole else f"not the benchmark's {ORIGINALS} and {STRONG}"
    return Benchmark(
        task="copydays",
        folder=ImageFolder(
            root=root,
            classes=(*(str(block) for block in blocks), _DISTRACTOR_FOLDER),
            paths=[*originals.paths.values(), *strong.paths.values(), *distractors],
            labels=np.array(labels + [none] * len(distractors), np.int32),
        ),
        queries=queries,
        database=database,
        keeps_self=False,
        groups=len({labels[query] for query in queries.tolist()}),
        whole=whole,
        note=f"{first} originals, {len(queries)} strong queries ({part}), "
        f"{len(distractors)} distractors",
        ignored=originals.ignored + strong.ignored,
    )


def _blocks(originals: dict[int, str]) -> dict[int, int]:
    """Number / 100 -> group."""
    blocks: dict[int, int] = {}
    for number, path in originals.items():
        if number // 100 in blocks:
            raise dataset_error(
                f"{path} is a second original of the images {number // 100}xx: Copydays has one; "
                "move copies to 'strong'"
            )
        blocks[number // 100] = len(blocks)
    return blocks
