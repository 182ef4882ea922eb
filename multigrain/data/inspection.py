"""What is in a dataset: counts, sizes, unreadable files, equal and almost equal images.

Everything that decodes or compares images has a limit of images and of time; what was looked at is
a random sample then, and the result says how large it was.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multigrain.data.held_out import equal_files
from multigrain.data.image_folder import ImageFolder
from multigrain.data.inspection_report import FolderReport, Inspection, PairReport
from multigrain.errors import MultigrainError
from multigrain.images.decode import decode_image, image_size
from multigrain.machine import available_cpus
from multigrain.text import stored_path

_AT_ONCE: Final = 64
_BLOCK: Final = 1024  # rows of the matrix of distances
_SHOWN: Final = 5
#: Most files whose bytes are compared.
_MOST_EQUAL: Final = 50_000
#: Most classes that are listed one by one.
_MOST_CLASSES: Final = 1000

# Pairs are almost equal from this correlation of their brightness gradients on, in pictures of
# 16 x 16 pixels, and up to this mean difference of their colors in levels of 0..255. Of photographs
# of the same places, distinct ones reach 0.88, and smaller, brighter and compressed copies 0.96.
_CORRELATION: Final = 0.93
_MAX_LEVELS: Final = 16.0
_SIDE: Final = 16
# Norm of the gradients below which an image is flat.
_FLAT: Final = 10.0
_THUMBNAIL: Final = 8


def inspect(
    train: ImageFolder,
    held_out: ImageFolder | None,
    *,
    resolution: int,
    images: int = 2000,
    seconds: float = 60.0,
    alive: Callable[[], None] = lambda: None,
) -> Inspection:
    """Looks at a dataset.

    Args:
        train: the images that are trained on.
        held_out: the others.
        resolution: training resolution in pixels.
        images: most images that are decoded, over both sides.
        seconds: after which no further image is decoded.
        alive: called again and again.
    """
    begun = time.monotonic()
    both = _joined(train, held_out)
    random = Random(0)
    equal = _equal(both, len(train), random, begun + seconds / 2, alive)
    chosen = list(range(len(both)))
    random.shuffle(chosen)
    looks: list[_Look] = []
    with ThreadPoolExecutor(available_cpus(), thread_name_prefix="inspect") as pool:
        for start in range(0, min(images, len(both)), _AT_ONCE):
            some = chosen[start : min(start + _AT_ONCE, images)]
            looks += pool.map(lambda index: _look(both, index), some)
            alive()
            if time.monotonic() - begun > seconds:
                break
    near = _near(both, len(train), [look for look in looks if not look.reason], equal, alive)
    return Inspection(
        _report(train, [look for look in looks if look.index < len(train)], resolution),
        _report(held_out, [look for look in looks if look.index >= len(train)], resolution)
        if held_out is not None
        else None,
        equal.report,
        near,
        time.monotonic() - begun,
    )


@dataclass(frozen=True)
class _Look:
    index: int
    path: str
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    gradients: NDArray[np.float32] | None = None
    thumbnail: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class _Equal:
    report: PairReport
    group: dict[int, int]  # image -> first image with the same bytes


def _joined(train: ImageFolder, held_out: ImageFolder | None) -> ImageFolder:
    """Both sides as one folder, which begins with the images that are trained on."""
    paths = [
        os.path.join(os.path.abspath(part.root), path)[1:]
        for part in (train, held_out)
        if part is not None
        for path in part.paths
    ]
    return ImageFolder(Path("/"), ("",), paths, np.zeros(len(paths), np.int32), train.limits)


def _equal(
    both: ImageFolder, border: int, random: Random, until: float, alive: Callable[[], None]
) -> _Equal:
    chosen: Sequence[int] = range(len(both))
    if len(both) > _MOST_EQUAL:
        chosen = random.sample(chosen, _MOST_EQUAL)

    def proceed() -> None:
        alive()
        if time.monotonic() > until:
            raise TimeoutError

    try:
        groups = equal_files(both, chosen, alive=proceed)
    except TimeoutError:
        return _Equal(PairReport(), {})
    # All pairs of a group would be n^2: each copy counts once.
    pairs = [(group[0], other) for group in groups for other in group[1:]]
    first = {index: group[0] for group in groups for index in group}
    return _Equal(_pairs(both, border, pairs, len(chosen)), first)


def _look(both: ImageFolder, index: int) -> _Look:
    path = both.paths[index]
    try:
        data = both.read(index)
        size = image_size(data, both.limits)
        image = decode_image(data, both.limits, shortest=2 * _SIDE)
    except MultigrainError as error:
        return _Look(index, path, error.message)
    small = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    thumbnail = np.asarray(small, np.float32).ravel()
    return _Look(index, path, "", size, _gradients(image), thumbnail)


def _gradients(image: Image.Image) -> NDArray[np.float32]:
    """Differences of neighboring pixels in a small gray picture, with norm 1.

    Other light multiplies them by one number, and another size or compression changes them little.
    Flat images, whose differences are noise, have a direction of their own.
    """
    gray = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
    across, down = np.diff(gray, axis=1), np.diff(gray, axis=0)
    found = np.concatenate([across.ravel(), down.ravel(), np.zeros(1, np.float32)])
    norm = float(np.linalg.norm(found))
    if norm < _FLAT:
        norm, found[:] = 1.0, 0
        found[-1] = 1
    return found / np.float32(norm)


def _near(
    both: ImageFolder, border: int, looks: list[_Look], equal: _Equal, alive: Callable[[], None]
) -> PairReport:
    """Pairs with almost the same gradients and colors, whose bytes differ."""
    looks = sorted(looks, key=lambda look: look.index)
    vectors = [look.gradients for look in looks if look.gradients is not None]
    thumbnails = [look.thumbnail for look in looks if look.thumbnail is not None]
    if not vectors:
        return PairReport()
    gradients, small = np.stack(vectors), np.stack(thumbnails)
    pairs = []
    for start in range(0, len(looks), _BLOCK):
        alive()
        rows, columns = np.nonzero(gradients[start : start + _BLOCK] @ gradients.T >= _CORRELATION)
        rows += start
        for one, other in zip(rows.tolist(), columns.tolist(), strict=True):
            if one >= other or np.abs(small[one] - small[other]).mean() > _MAX_LEVELS:
                continue
            first, second = looks[one].index, looks[other].index
            if equal.group.get(first, -1) != equal.group.get(second, -2):
                pairs.append((first, second))
    return _pairs(both, border, pairs, len(looks))


def _pairs(
    both: ImageFolder, border: int, pairs: list[tuple[int, int]], compared: int
) -> PairReport:
    """Counts pairs of ascending indices; those below ``border`` are trained on."""
    across = [pair for pair in pairs if pair[0] < border <= pair[1]]
    shown = (across + [pair for pair in pairs if pair not in set(across)])[:_SHOWN]
    return PairReport(
        compared,
        sum(second < border for _, second in pairs),
        sum(first >= border for first, _ in pairs),
        len(across),
        [" = ".join(stored_path(f"/{both.paths[index]}") for index in pair) for pair in shown],
    )


def _report(folder: ImageFolder, looks: list[_Look], resolution: int) -> FolderReport:
    counts = np.bincount(folder.labels, minlength=len(folder.classes)).tolist()
    named = dict(zip(folder.classes, counts, strict=True))
    bad = [look for look in looks if look.reason]
    sides = [min(look.size) for look in looks if not look.reason]
    return FolderReport(
        path=stored_path(str(folder.root)),
        images=len(folder),
        classes=len(folder.classes),
        class_images=dict(list(named.items())[:_MOST_CLASSES]),
        left_out=folder.left_out.by_reason,
        checked=len(looks),
        unreadable=len(bad),
        unreadable_files=[
            f"{stored_path(f'/{look.path}')} ({look.reason})" for look in bad[:_SHOWN]
        ],
        shortest=min(sides, default=0),
        median=round(statistics.median(sides)) if sides else 0,
        longest=max(sides, default=0),
        small=sum(side < resolution for side in sides),
    )
