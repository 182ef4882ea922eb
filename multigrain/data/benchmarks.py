"""Retrieval benchmarks on disk: the images, and which should find which."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from multigrain.data.image_folder import EXTENSIONS, ImageFolder, scan
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.specs.evaluation import Task
from multigrain.storage import remedy


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


# MERGED: Image files by the number in their name.


@dataclass(frozen=True)
class NumberedFiles:
    """Images whose names carry a number.

    Args:
        paths: number -> path relative to the root, in the order of the numbers.
        ignored: images whose names do not have the form.
    """

    paths: dict[int, str]
    ignored: int


def image_paths(root: Path, folder: Path) -> list[str]:
    """Image files in a folder and its sub-folders, relative to ``root``, sorted; hidden ones
    are left out.

    Raises:
        MultigrainError: DATASET if the folder does not exist or cannot be listed.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise dataset_error(f"{folder} {what}: give the folder of the images")
    found: list[str] = []

    def failed(error: OSError) -> None:
        todo = remedy(error, "list and read it", "check the disk")
        raise dataset_error(
            f"{error.filename} cannot be listed: {error.strerror}; {todo}"
        ) from error

    for directory, subfolders, names in os.walk(folder, onerror=failed):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = Path(directory).relative_to(root)
        found += [
            (below / name).as_posix()
            for name in names
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(found)


def numbered_files(root: Path, folder: Path, form: re.Pattern[str]) -> NumberedFiles:
    """The images of a folder whose names without extension have a form.

    In the order of their numbers: what a listing gives is in no order on most file systems.

    Args:
        root: what the paths are relative to.
        folder: below it.
        form: matches a whole name; its first group is the number.

    Raises:
        MultigrainError: DATASET, also if two files have the same number.
    """
    paths: dict[int, str] = {}
    ignored = 0
    for path in image_paths(root, folder):
        match = form.fullmatch(Path(path).stem)
        if match is None:
            ignored += 1
            continue
        number = int(match[1])
        if number in paths:
            raise dataset_error(
                f"{paths[number]} and {path} in {root} are the same image {match[1]} of the "
                "benchmark: remove one of them"
            )
        paths[number] = path
    return NumberedFiles(dict(sorted(paths.items())), ignored)


def dataset_error(message: str) -> MultigrainError:
    """DATASET."""
    return MultigrainError(ErrorKind.DATASET, message)


# MERGED: The user's own groups of images that belong together.


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


# MERGED: INRIA Copydays, strong attacks, with distractors (Douze et al., CIVR 2009).


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


# MERGED: INRIA Holidays (Jegou, Douze, Schmid, ECCV 2008).


_HOLIDAYS_NAME = re.compile(r"(1\d{5})", re.ASCII)
GROUPS, HOLIDAYS_IMAGES = 500, 1491


def list_holidays(root: Path) -> Benchmark:
    """``root/**/1xxxxx.jpg``: an image's group is its number / 100, a group's query ends in 00.

    A query ranks all images but itself. A part of the benchmark will do: images of groups
    without a query are only ranked, and a query that is alone in its group is none.

    Raises:
        MultigrainError: DATASET.
    """
    files = numbered_files(root, root, _HOLIDAYS_NAME)
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
    whole = (len(queries), len(names), len(numbers)) == (GROUPS, GROUPS, HOLIDAYS_IMAGES)
    part = "the whole benchmark" if whole else f"a part of the benchmark's {HOLIDAYS_IMAGES}"
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


# MERGED: UKB, the recognition benchmark of Nister and Stewenius (CVPR 2006).


_UKB_NAME = re.compile(r"ukbench(\d{5})", re.ASCII)
UKB_IMAGES = 10_200
VIEWS = 4


def list_ukb(root: Path) -> Benchmark:
    """``root/**/ukbenchxxxxx.jpg``: four consecutive numbers, from a multiple of 4, are one object.

    Every image is a query and ranks all images, itself included. Some of the objects will do,
    but each with its four images.

    Raises:
        MultigrainError: DATASET.
    """
    files = numbered_files(root, root, _UKB_NAME)
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
    whole = len(numbers) == UKB_IMAGES
    part = "the whole benchmark" if whole else f"a part of the benchmark's {UKB_IMAGES}"
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


# MERGED: Retrieval benchmarks on disk: which images there are, and which should find which.


__all__ = ["RETRIEVAL_TASKS", "Benchmark", "list_benchmark"]

RETRIEVAL_TASKS: frozenset[Task] = frozenset({"groups", "holidays", "ukb", "copydays"})


def list_benchmark(
    task: Task, root: Path, group_queries: Literal["all", "first"] = "all"
) -> Benchmark:
    """The benchmark of a retrieval task. Only names are looked at; no file is opened.

    Args:
        task: one of RETRIEVAL_TASKS.
        root: folder of the images.
        group_queries: of the task "groups": every image of a group is a query, or its first.

    Raises:
        MultigrainError: DATASET if the folder has not the layout that the task needs.
    """
    if task == "holidays":
        return list_holidays(root)
    if task == "ukb":
        return list_ukb(root)
    if task == "copydays":
        return list_copydays(root)
    if task == "groups":
        return list_groups(root, group_queries)
    raise ValueError(f"{task} is no retrieval task")
