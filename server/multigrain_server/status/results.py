"""What an evaluation has written below a job's ``results/``, as the job's page shows it."""

from __future__ import annotations

import csv
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from multigrain.errors import MultigrainError
from multigrain.files import parse_json, read_tail
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.text import original_path
from multigrain_server.jobs.artifacts import open_artifact
from multigrain_server.status.thumbnails import thumbnails

MAX_MATRIX = 40
"""Most classes of a confusion matrix that is drawn."""

_MAX_CLASSES = 200
_MAX_CONFUSED = 12
_MAX_MISTAKES = 12
_MAX_BYTES = 8 << 20
_CACHED = 16
_LOG_BYTES = 32 << 10
_LOG_LINES = 120


@dataclass(frozen=True)
class ClassRow:
    """Images of a class, and how many of them were recognized."""

    name: str
    images: int
    right: int


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for one of another class; ``picture`` is a data URI, or ""."""

    path: str
    truth: str
    predicted: str
    probability: float
    picture: str = ""


@dataclass(frozen=True)
class Results:
    """The results of an evaluation.

    Attributes:
        step: of the weights that were evaluated.
        best: of a training run's best evaluation, not of its latest one.
        classes: those with the lowest accuracy first, at most 200.
        classes_more: how many there are beyond these.
        names: of the confusion matrix's columns; empty = no matrix, or too large to draw.
        matrix: rows of counts, true class by predicted class.
        confused: (true, predicted, images), the most frequent mistakes first.
        mistakes: those of which the network was most certain first.
        wrong: images with a wrong prediction, over all.
        cut: whether images.csv was too long to be read to its end.
    """

    step: int
    best: bool
    classes: tuple[ClassRow, ...] = ()
    classes_more: int = 0
    names: tuple[str, ...] = ()
    matrix: tuple[tuple[int, ...], ...] = ()
    confused: tuple[tuple[str, str, int], ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    wrong: int = 0
    cut: bool = False


@dataclass(frozen=True)
class LogTail:
    """The end of a log file."""

    name: str
    size: int
    text: str


class ResultFiles:
    """Reads results, again only when they have changed. Reads the disk and starts a process."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[object, Results | None]] = OrderedDict()

    def of(self, request: JobRequest, folder: JobFolder) -> Results | None:
        """The results of a job; None if there are none, or they cannot be read."""
        best = (folder.results / "best" / "metrics.json").is_file()
        base = "results/best" if best else "results"
        try:
            status = (folder.path / base / "metrics.json").stat()
        except OSError:
            return None
        stamp = (base, status.st_mtime_ns, status.st_ino)
        known = self._known.get(folder.job_id)
        if known is None or known[0] != stamp:
            try:
                known = stamp, _read(folder, base, request, best=best)
            except (MultigrainError, ValueError, TypeError, LookupError, csv.Error):
                return None  # being replaced at this moment, or damaged
        self._known[folder.job_id] = known
        self._known.move_to_end(folder.job_id)
        while len(self._known) > _CACHED:
            self._known.popitem(last=False)
        return known[1]


def log_tails(folder: JobFolder) -> tuple[LogTail, ...]:
    """The ends of the logs of the runner and of the first worker."""
    tails = []
    for name in ("worker_0.log", "runner.log"):
        try:
            data, start = read_tail(folder.logs / name, _LOG_BYTES)
        except OSError:
            continue
        lines = data.decode(errors="replace").splitlines()
        if lines:
            tails.append(LogTail(name, start + len(data), "\n".join(lines[-_LOG_LINES:])))
    return tuple(tails)


def _read(folder: JobFolder, base: str, request: JobRequest, *, best: bool) -> Results:
    metrics = parse_json(_text(folder, f"{base}/metrics.json")[0])
    if not isinstance(metrics, dict):
        raise ValueError("no JSON object")
    step = _count(metrics.get("step", 0))
    classes = [
        ClassRow(row["class"], _count(row["images"]), _count(row["recognised"]))
        for row in _rows(folder, f"{base}/classes.csv")[0]
        if _count(row["images"])
    ]
    classes.sort(key=lambda row: (row.right / row.images, -row.images, row.name))
    names, matrix = _matrix(folder, base)
    rows, cut = _rows(folder, f"{base}/images.csv")
    mistakes, wrong, pairs = _mistakes(rows)
    if mistakes and (root := _dataset(request)):
        pictures = thumbnails(Path(root), [original_path(m.path) for m in mistakes])
        mistakes = [
            Mistake(m.path, m.truth, m.predicted, m.probability, picture)
            for m, picture in zip(mistakes, pictures, strict=True)
        ]
    return Results(
        step,
        best,
        tuple(classes[:_MAX_CLASSES]),
        max(0, len(classes) - _MAX_CLASSES),
        names,
        matrix,
        pairs,
        tuple(mistakes),
        wrong,
        cut,
    )


def _matrix(folder: JobFolder, base: str) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    text, cut = _text(folder, f"{base}/confusion.csv")
    rows = csv.reader(text.splitlines())
    names = tuple(next(rows, [""])[1:])
    if cut or not 0 < len(names) <= MAX_MATRIX:
        return (), ()
    matrix = tuple(tuple(_count(cell) for cell in row[1:]) for row in rows)
    if len(matrix) != len(names) or any(len(row) != len(names) for row in matrix):
        raise ValueError("the confusion matrix is not square")
    return names, matrix


def _count(value: str | int | None) -> int:
    """A number of images or steps. Raises ValueError or TypeError."""
    if not isinstance(value, str | int):
        raise TypeError("not a whole number")
    number = int(value)
    if not 0 <= number < 1 << 63:
        raise ValueError("out of range")
    return number


def _mistakes(
    rows: Iterator[dict[str, str]],
) -> tuple[list[Mistake], int, tuple[tuple[str, str, int], ...]]:
    wrong: list[Mistake] = []
    pairs: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.get("read") != "1" or "predicted" not in row or row["predicted"] == row["class"]:
            continue
        probability = float(row.get("probability") or 0.0)
        if not 0 <= probability <= 1 or None in (row["path"], row["class"], row["predicted"]):
            raise ValueError("a row is damaged")
        wrong.append(Mistake(row["path"], row["class"], row["predicted"], probability))
        pair = row["class"], row["predicted"]
        pairs[pair] = pairs.get(pair, 0) + 1
    wrong.sort(key=lambda mistake: -mistake.probability)
    confused = sorted(pairs.items(), key=lambda entry: -entry[1])[:_MAX_CONFUSED]
    return wrong[:_MAX_MISTAKES], len(wrong), tuple((*pair, n) for pair, n in confused)


def _rows(folder: JobFolder, name: str) -> tuple[Iterator[dict[str, str]], bool]:
    text, cut = _text(folder, name)
    return csv.DictReader(text.splitlines()), cut


def _text(folder: JobFolder, name: str) -> tuple[str, bool]:
    """The first 8 MiB of a file, up to the last whole line, and whether there is more.

    "" if there is no such file: an evaluation writes those of its tasks.
    """
    try:
        with open_artifact(folder, name) as file:
            data = file.read(_MAX_BYTES + 1)
    except MultigrainError:
        return "", False
    cut = len(data) > _MAX_BYTES
    if cut:
        data = data[: data.rfind(b"\n", 0, _MAX_BYTES) + 1]
    return data.decode(errors="replace"), cut


def _dataset(request: JobRequest) -> str:
    """The folder of the images that a job evaluates."""
    if request.kind is JobKind.EVALUATION and request.evaluation is not None:
        return request.evaluation.dataset_path
    if request.training is not None:
        return request.training.dataset.val_path or request.training.dataset.train_path
    return ""
