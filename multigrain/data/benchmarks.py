"""Retrieval benchmarks on disk: images, queries, and which images each query should find."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from multigrain.data.image_folder import ImageFolder, cannot_list, lister, scan
from multigrain.data.listing import LeftOut
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import OutsideRootsError, Roots, stat_path
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits
from multigrain.specs.evaluation import Task
from multigrain.text import printable

RETRIEVAL_TASKS: frozenset[Task] = frozenset({"groups", "holidays", "ukb", "copydays"})

HOLIDAYS_GROUPS, HOLIDAYS_IMAGES = 500, 1491
_HOLIDAYS_NAME = re.compile(r"(1\d{5})", re.ASCII)

UKB_IMAGES, UKB_VIEWS = 10_200, 4
_UKB_NAME = re.compile(r"ukbench(\d{5})", re.ASCII)

COPYDAYS_ORIGINALS, COPYDAYS_STRONG = 157, 229
_COPYDAYS_NAME = re.compile(r"(\d{6})", re.ASCII)
_ORIGINAL_FOLDERS = ("original", "originals")
_STRONG_FOLDER = "strong"
_DISTRACTOR_FOLDER = "distractors"


@dataclass(frozen=True)
class Benchmark:
    """Images, the queries among them, and the groups that define their positives.

    Each query ranks the images of the database; its positives are those of its own group.

    Args:
        task: the task whose protocol is used.
        folder: the images; ``labels`` are their groups.
        queries: (Q,), indices of the query images, ascending.
        database: (N,), whether each image is ranked.
        keeps_self: whether a query in the database is ranked for itself too.
        groups: number of groups with a query.
        whole: whether these are all images of the published benchmark; None for own data.
        note: summary for the log.
        ignored: number of images in the folder that do not belong to the benchmark.
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


def list_benchmark(
    task: Task,
    root: Path,
    group_queries: Literal["all", "first"] = "all",
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Benchmark:
    """Lists the benchmark of a retrieval task by its file names; no file is opened.

    Args:
        task: one of RETRIEVAL_TASKS.
        root: folder of the images.
        group_queries: for the task "groups": every image of a group is a query, or the first.
        limits: limits of an image file.

    Raises:
        MultigrainError: DATASET, if the folder has not the layout that the task needs.
    """
    if task == "holidays":
        return list_holidays(root, limits)
    if task == "ukb":
        return list_ukb(root, limits)
    if task == "copydays":
        return list_copydays(root, limits)
    if task == "groups":
        return list_groups(root, group_queries, limits)
    raise ValueError(f"{task} is no retrieval task")


@dataclass(frozen=True)
class NumberedFiles:
    """Images with a number in their names.

    Args:
        paths: number -> path relative to the root, in the order of the numbers.
        ignored: number of images whose names do not match the pattern.
    """

    paths: dict[int, str]
    ignored: int


def list_part(root: Path, below: str, left_out: LeftOut, roots: Roots = None) -> list[str]:
    """Lists the image files in a folder and its sub-folders.

    Args:
        root: the folder that paths are relative to.
        below: the folder to list, relative to it; "" = the root.
        left_out: receives what is left out.
        roots: folders that everything must be in.

    Returns:
        Paths, sorted.

    Raises:
        MultigrainError: DATASET, if the folder does not exist or cannot be listed.
    """
    folder = root / below
    if not _is_folder(folder, roots):
        what = "is not a folder" if folder.exists() else "does not exist"
        raise dataset_error(f"{printable(str(folder))} {what}: give the folder of the images")
    try:
        listing = lister(root, roots).images(below)
    except OSError as error:
        raise cannot_list(error) from error
    left_out.update(listing.left_out)
    return listing.paths


def numbered_files(
    root: Path, below: str, pattern: re.Pattern[str], left_out: LeftOut, roots: Roots = None
) -> NumberedFiles:
    """Lists the images of a folder whose names without extension match a pattern.

    Args:
        root: folder that the paths are relative to.
        below: a folder below it; "" = the root.
        pattern: matches a whole name; its first group is the number.
        left_out: receives what is left out.
        roots: folders that everything must be in.

    Raises:
        MultigrainError: DATASET, also if two files have the same number.
    """
    paths: dict[int, str] = {}
    ignored = 0
    for path in list_part(root, below, left_out, roots):
        match = pattern.fullmatch(Path(path).stem)
        if match is None:
            ignored += 1
            continue
        number = int(match[1])
        if number in paths:
            raise dataset_error(
                f"{printable(paths[number])} and {printable(path)} in {printable(str(root))} are "
                f"the same image {match[1]} of the benchmark: remove one of them"
            )
        paths[number] = path
    return NumberedFiles(dict(sorted(paths.items())), ignored)


def _is_folder(path: Path, roots: Roots) -> bool:
    """Whether there is a folder; also if it leads outside the roots, which listing it says."""
    try:
        return stat.S_ISDIR(stat_path(path, roots).st_mode)
    except OutsideRootsError:
        return True
    except OSError:
        return False


def dataset_error(message: str) -> MultigrainError:
    """Returns a DATASET error."""
    return MultigrainError(ErrorKind.DATASET, message)


def list_groups(
    root: Path,
    queries: Literal["all", "first"] = "all",
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Benchmark:
    """Lists own groups of images, ``root/<group>/**/<image>``; see :func:`of_folder`.

    Raises:
        MultigrainError: DATASET.
    """
    return of_folder(scan(root, limits), queries)


def of_folder(folder: ImageFolder, queries: Literal["all", "first"] = "all") -> Benchmark:
    """Uses the classes of an image folder as groups.

    A query ranks all images but itself. The only image of a group is no query.

    Args:
        folder: the images, sorted by group.
        queries: all images, or the first of each group.

    Raises:
        MultigrainError: DATASET, if no group has two images.
    """
    sizes = np.bincount(folder.labels, minlength=len(folder.classes))
    candidates = np.arange(len(folder))
    if queries == "first":
        candidates = np.unique(folder.labels, return_index=True)[1]
        candidates.sort()
    chosen = candidates[sizes[folder.labels[candidates]] > 1]
    if not len(chosen):
        raise dataset_error(
            f"no sub-folder of {printable(str(folder.root))} has two images: put the images of "
            "each group into a sub-folder"
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


def list_copydays(root: Path, limits: ImageLimits = DEFAULT_LIMITS) -> Benchmark:
    """Lists INRIA Copydays, strong attacks, with distractors (Douze et al., CIVR 2009).

    ``root/original/20xx00.jpg``, ``root/strong/20xxyy.jpg`` and ``root/distractors/**``. A strong
    image is a query; it ranks the originals and the distractors (any images; the folder is
    optional), but not other queries. Its only positive is the original of the same number // 100.

    Raises:
        MultigrainError: DATASET.
    """
    shown = printable(str(root))
    original = next((n for n in _ORIGINAL_FOLDERS if _is_folder(root / n, limits.roots)), None)
    if original is None or not _is_folder(root / _STRONG_FOLDER, limits.roots):
        missing = "original" if original is None else _STRONG_FOLDER
        raise dataset_error(
            f"{shown} has no folder {missing!r}: Copydays needs the sub-folders 'original' "
            "(200000.jpg, 200100.jpg, ...) and 'strong' (200001.jpg, ...); 'distractors' (any "
            "images) is optional"
        )
    left_out = LeftOut()
    originals = numbered_files(root, original, _COPYDAYS_NAME, left_out, limits.roots)
    strong = numbered_files(root, _STRONG_FOLDER, _COPYDAYS_NAME, left_out, limits.roots)
    for name, files in ((original, originals), (_STRONG_FOLDER, strong)):
        if not files.paths:
            raise dataset_error(
                f"{printable(str(root / name))} has no images named as in Copydays (six digits: "
                "200000.jpg)"
            )
    blocks = _blocks(originals.paths)
    orphans = [path for number, path in strong.paths.items() if number // 100 not in blocks]
    if orphans:
        raise dataset_error(
            f"{len(orphans)} of the strong images in {shown} have no original with the same first "
            f"four digits, the first is {printable(orphans[0])}: add the originals, or remove these"
        )
    distractors: list[str] = []
    if _is_folder(root / _DISTRACTOR_FOLDER, limits.roots):
        distractors = list_part(root, _DISTRACTOR_FOLDER, left_out, limits.roots)
    none = len(blocks)  # a group without a query
    labels = [blocks[number // 100] for number in (*originals.paths, *strong.paths)]
    first = len(originals.paths)
    database = np.ones(first + len(strong.paths) + len(distractors), np.bool_)
    queries = np.arange(first, first + len(strong.paths))
    database[queries] = False
    whole = (len(originals.paths), len(strong.paths)) == (
        COPYDAYS_ORIGINALS,
        COPYDAYS_STRONG,
    )
    part = (
        "the whole benchmark"
        if whole
        else f"not the benchmark's {COPYDAYS_ORIGINALS} and {COPYDAYS_STRONG}"
    )
    return Benchmark(
        task="copydays",
        folder=ImageFolder(
            root=root,
            classes=(*(str(block) for block in blocks), _DISTRACTOR_FOLDER),
            paths=[*originals.paths.values(), *strong.paths.values(), *distractors],
            labels=np.array(labels + [none] * len(distractors), np.int32),
            left_out=left_out,
            limits=limits,
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
    """Maps number // 100 to the index of its group."""
    blocks: dict[int, int] = {}
    for number, path in originals.items():
        if number // 100 in blocks:
            raise dataset_error(
                f"{printable(path)} is a second original of the images {number // 100}xx: "
                "Copydays has one; move copies to 'strong'"
            )
        blocks[number // 100] = len(blocks)
    return blocks


def list_holidays(root: Path, limits: ImageLimits = DEFAULT_LIMITS) -> Benchmark:
    """Lists INRIA Holidays (Jegou, Douze, Schmid, ECCV 2008): ``root/**/1xxxxx.jpg``.

    An image's group is its number // 100, and a group's query is the number that ends in 00. A
    query ranks all images but itself. A part of the benchmark is accepted: images of groups
    without a query are ranked only, and the only image of a group is no query.

    Raises:
        MultigrainError: DATASET.
    """
    shown = printable(str(root))
    left_out = LeftOut()
    files = numbered_files(root, "", _HOLIDAYS_NAME, left_out, limits.roots)
    if not files.paths:
        raise dataset_error(
            f"{shown} has no images named as in INRIA Holidays (100000.jpg, 100001.jpg, "
            "100100.jpg, ...): give the folder that its archives were unpacked to"
        )
    numbers = np.array(list(files.paths))
    names, labels, sizes = np.unique(numbers // 100, return_inverse=True, return_counts=True)
    queries = np.flatnonzero((numbers % 100 == 0) & (sizes[labels] > 1))
    if not len(queries):
        raise dataset_error(
            f"{shown} has no query: at least one group needs the image ending in 00 and another "
            "one (such as 100000.jpg and 100001.jpg)"
        )
    whole = (len(queries), len(names), len(numbers)) == (
        HOLIDAYS_GROUPS,
        HOLIDAYS_GROUPS,
        HOLIDAYS_IMAGES,
    )
    part = "the whole benchmark" if whole else f"a part of the benchmark's {HOLIDAYS_IMAGES}"
    return Benchmark(
        task="holidays",
        folder=ImageFolder(
            root=root,
            classes=tuple(str(name) for name in names),
            paths=list(files.paths.values()),
            labels=labels.astype(np.int32),
            left_out=left_out,
            limits=limits,
        ),
        queries=queries,
        database=np.ones(len(numbers), np.bool_),
        keeps_self=False,
        groups=len(queries),
        whole=whole,
        note=f"{len(queries)} queries of {len(names)} groups, {len(numbers)} images: {part}",
        ignored=files.ignored,
    )


def list_ukb(root: Path, limits: ImageLimits = DEFAULT_LIMITS) -> Benchmark:
    """Lists UKB (Nister and Stewenius, CVPR 2006): ``root/**/ukbenchxxxxx.jpg``.

    Four consecutive numbers from a multiple of 4 on show one object. Every image is a query and
    ranks all images, itself included. A part of the objects is accepted, each with its four
    images.

    Raises:
        MultigrainError: DATASET.
    """
    shown = printable(str(root))
    left_out = LeftOut()
    files = numbered_files(root, "", _UKB_NAME, left_out, limits.roots)
    if not files.paths:
        raise dataset_error(
            f"{shown} has no images named as in UKB (ukbench00000.jpg, ukbench00001.jpg, ...): "
            "give the folder that its archive was unpacked to"
        )
    numbers = np.array(list(files.paths))
    objects, labels, views = np.unique(
        numbers // UKB_VIEWS, return_inverse=True, return_counts=True
    )
    if (views != UKB_VIEWS).any():
        incomplete = objects[views != UKB_VIEWS]
        first = int(incomplete[0]) * UKB_VIEWS
        missing = next(n for n in range(first, first + UKB_VIEWS) if n not in files.paths)
        raise dataset_error(
            f"{len(incomplete)} of the {len(objects)} objects in {shown} lack images, "
            f"the first missing one is ukbench{missing:05d}. Each object needs its four images: "
            "add them, or remove the object's other images"
        )
    whole = len(numbers) == UKB_IMAGES
    part = "the whole benchmark" if whole else f"a part of the benchmark's {UKB_IMAGES}"
    return Benchmark(
        task="ukb",
        folder=ImageFolder(
            root=root,
            classes=tuple(f"{number:05d}" for number in (objects * UKB_VIEWS).tolist()),
            paths=list(files.paths.values()),
            labels=labels.astype(np.int32),
            left_out=left_out,
            limits=limits,
        ),
        queries=np.arange(len(numbers)),
        database=np.ones(len(numbers), np.bool_),
        keeps_self=True,
        groups=len(objects),
        whole=whole,
        note=f"{len(objects)} objects, {len(numbers)} images: {part}",
        ignored=files.ignored,
    )
