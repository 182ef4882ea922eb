"""Held-out images: a share of every class that a training run sets aside by itself.

The choice depends on the paths, the bytes of the files and the seed alone: every worker and every
attempt makes the same one. It is recorded in the job's folder, so that images that are added later
do not move others to the other side, and so that evaluations of the job's weights find it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from multigrain.data.image_folder import ImageFolder
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import open_regular, parse_json, read_bytes
from multigrain.storage import replace_file
from multigrain.text import printable

_THREADS: Final = 8  # a network file system serves requests in parallel
_MIDDLE: Final = 4096  # bytes; photographs of one camera begin with equal bytes
_AT_ONCE: Final = 1024
_MAX_RECORD_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Split:
    """A dataset in two parts that share no image."""

    train: ImageFolder
    held_out: ImageFolder


def split(
    folder: ImageFolder,
    fraction: float,
    seed: int,
    *,
    earlier: Collection[str] = (),
    alive: Callable[[], None] = lambda: None,
) -> Split:
    """Holds out a share of every class.

    A class of two images or more has at least one on each side. Images with equal bytes are on the
    same side, so that the score is not that of images trained on; if they are in different
    classes, all are trained on. A class whose images are all equal, or are all in another class
    too, is trained on only.

    Args:
        folder: the dataset.
        fraction: of the images of each class to hold out, between 0 and 1.
        seed: of the choice.
        earlier: images that were held out before; they stay so, and no other is.
        alive: called after some files.

    Raises:
        MultigrainError: DATASET, if no image can be held out.
    """
    same = equal_files(folder, range(len(folder)), alive=alive)
    group_of = list(range(len(folder)))
    for members in same:
        for index in members:
            group_of[index] = members[0]
    groups: dict[int, list[int]] = {}
    for index, first in enumerate(group_of):
        groups.setdefault(first, []).append(index)
    if earlier:
        known = set(earlier)
        chosen = [
            index
            for members in groups.values()
            if any(folder.paths[index] in known for index in members)
            for index in members
        ]
    else:
        chosen = _choose(folder, list(groups.values()), fraction, seed)
    if not chosen:
        raise MultigrainError(
            ErrorKind.DATASET,
            f"no image of {printable(str(folder.root))} can be held out: every class has one "
            "image, or copies of one; add images, or set dataset.val_fraction to 0",
        )
    held_out = np.zeros(len(folder), bool)
    held_out[chosen] = True
    return Split(folder.subset(np.flatnonzero(~held_out)), folder.subset(np.flatnonzero(held_out)))


def equal_files(
    folder: ImageFolder, indices: Iterable[int], *, alive: Callable[[], None] = lambda: None
) -> list[list[int]]:
    """Finds images whose files have equal bytes.

    Only files of equal size are opened, and only those with equal bytes in their middle are read.

    Args:
        folder: the dataset.
        indices: of the images to compare.
        alive: called after some files.

    Returns:
        Groups of two or more images, each sorted, in the order of their first images. A file that
        cannot be read is in none.
    """
    groups = [sorted(indices)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="equal-files") as pool:
        for key in (_size, _middle, _digest):

            def key_of(index: int, key: Callable[[ImageFolder, int], object] = key) -> object:
                try:
                    return key(folder, index)
                except (OSError, MultigrainError):  # it is reported when it is decoded
                    return None

            finer: dict[tuple[int, object], list[int]] = {}
            pairs = [(number, index) for number, group in enumerate(groups) for index in group]
            for start in range(0, len(pairs), _AT_ONCE):
                some = pairs[start : start + _AT_ONCE]
                keys = pool.map(key_of, [index for _, index in some])
                for (number, index), found in zip(some, keys, strict=True):
                    if found is not None:
                        finer.setdefault((number, found), []).append(index)
                alive()
            groups = [group for group in finer.values() if len(group) > 1]
    return sorted(groups)


def save_held_out(path: Path, split_: Split, fraction: float, seed: int) -> None:
    """Records what was held out.

    Raises:
        OSError: if the file cannot be written.
    """
    # Names that are not UTF-8 hold unpaired surrogates, which only ASCII JSON keeps.
    body = {"fraction": fraction, "seed": seed, "images": split_.held_out.paths}
    replace_file(path, (json.dumps(body) + "\n").encode())


def load_held_out(path: Path) -> list[str] | None:
    """The images that were held out, relative to the dataset; None if nothing is recorded.

    Raises:
        MultigrainError: DATASET, if the record cannot be read.
    """
    try:
        return list(parse_json(read_bytes(path, max_bytes=_MAX_RECORD_BYTES))["images"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MultigrainError(
            ErrorKind.DATASET,
            f"the record of the held-out images, {path.name}, cannot be read: {error}; train again",
        ) from error


def recorded_split(folder: ImageFolder, path: Path) -> Split:
    """Splits a dataset as a training run did.

    Args:
        folder: the dataset, possibly with other images than then.
        path: the record of the run.

    Raises:
        MultigrainError: DATASET, if there is no record, or none of its images is left.
    """
    recorded = load_held_out(path)
    if recorded is None:
        raise MultigrainError(
            ErrorKind.DATASET,
            "the training job has not recorded which images it held out; name the images to "
            "evaluate in dataset_path",
        )
    known = set(recorded)
    mask = np.array([name in known for name in folder.paths], bool)
    if not mask.any():
        raise MultigrainError(
            ErrorKind.DATASET,
            f"none of the {len(known)} images that the training job held out is left in "
            f"{printable(str(folder.root))}; name the images to evaluate in dataset_path",
        )
    return Split(folder.subset(np.flatnonzero(~mask)), folder.subset(np.flatnonzero(mask)))


def _choose(folder: ImageFolder, groups: list[list[int]], fraction: float, seed: int) -> list[int]:
    by_class: list[list[list[int]]] = [[] for _ in folder.classes]
    images = np.bincount(folder.labels, minlength=len(folder.classes)).tolist()
    # Of each class: the images that are in another class, too, and so are trained on.
    shared = [0] * len(folder.classes)
    labels = folder.labels.tolist()
    for members in groups:
        classes = {labels[index] for index in members}
        if len(classes) == 1:
            by_class[classes.pop()].append(members)
            continue
        for label in classes:
            shared[label] += 1
    chosen: list[int] = []
    for label, candidates in enumerate(by_class):
        # As many as possible may be held out, but something must be left to train on.
        most = len(candidates) if shared[label] else len(candidates) - 1
        if most < 1:
            continue
        wanted = max(1, round(fraction * images[label]))
        order = sorted(candidates, key=lambda members: _rank(folder.paths[members[0]], seed))
        taken: list[list[int]] = []
        count = 0
        for members in order:
            if len(taken) < most and count + len(members) <= wanted:
                taken.append(members)
                count += len(members)
        for members in taken or [min(order, key=len)]:
            chosen += members
    return chosen


def _rank(path: str, seed: int) -> bytes:
    """A number by which images are drawn; it does not depend on the other images."""
    return hashlib.sha256(f"{seed}\0".encode() + os.fsencode(path)).digest()


def _size(folder: ImageFolder, index: int) -> object:
    return os.stat(os.path.join(folder.root, folder.paths[index])).st_size


def _middle(folder: ImageFolder, index: int) -> object:
    """Some bytes of the middle, without reading the file."""
    path = os.path.join(folder.root, folder.paths[index])
    with open_regular(path, folder.limits.roots) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, (size - _MIDDLE) // 2))
        return file.read(_MIDDLE)


def _digest(folder: ImageFolder, index: int) -> object:
    return hashlib.sha256(folder.read(index)).digest()
