"""The files an evaluation writes: metrics, one row per image, the confusion matrix."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multigrain.data.image_folder import ImageFolder
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate.classification import ClassificationResult
from multigrain.evaluate.copy_detection import CopyDetectionResult
from multigrain.evaluate.evaluator import EvaluationResult
from multigrain.evaluate.retrieval import average_precision, write_benchmark
from multigrain.events.records import EvaluationRecord
from multigrain.files import open_to_write
from multigrain.fonts import PlotNames, plot_names
from multigrain.storage import open_text_to_write, os_error_hint
from multigrain.text import stored_path

METRICS = "metrics.json"
IMAGES = "images.csv"
CLASSES = "classes.csv"
CONFUSION = "confusion.csv"
CONFUSION_PLOT = "confusion.png"
BEST = "best"
"""Folder of the results of a training run's best evaluation."""

_UNREAD = -1
MAX_MATRIX = 1000
"""Most outputs of which there is a confusion matrix: with ten thousand it would have 10^8 cells."""

_MAX_NAMED = 40  # most classes with names beside the matrix
_MAX_COUNTED = 20  # most classes with counts in the matrix's cells


def write_results(
    results: Path,
    folder: ImageFolder,
    record: EvaluationRecord,
    result: EvaluationResult,
    gem_p: float,
    *,
    plot: bool = True,
) -> str:
    """Writes the results of an evaluation.

    ``metrics.json`` always; ``images.csv`` for classification and copy detection;
    ``classes.csv`` for classification, with up to MAX_MATRIX outputs also ``confusion.csv`` and
    ``confusion.png``; ``<task>.json`` and ``<task>.csv`` for a retrieval benchmark.

    Args:
        results: the folder; created if missing.
        folder: the images.
        record: the record for the event log.
        result: metrics and details.
        gem_p: pooling exponent of the network.
        plot: draw ``confusion.png``, which takes about a second.

    Returns:
        A note for the log; "" if there is none.

    Raises:
        MultigrainError: STORAGE.
    """
    classification, copies = result.classification, result.copies
    note = ""
    try:
        results.mkdir(parents=True, exist_ok=True)
        body = asdict(record)
        if classification is not None:
            body["top1_per_class"] = classification.per_class()
        with open_text_to_write(results / METRICS) as file:
            file.write(json.dumps(body, indent=1) + "\n")
        if classification is not None or copies is not None:
            _write_csv(results / IMAGES, _image_rows(folder, classification, copies))
        if classification is not None:
            _write_csv(results / CLASSES, _class_rows(classification))
            if classification.outputs <= MAX_MATRIX:
                _write_csv(results / CONFUSION, _confusion_rows(classification))
                if plot:
                    counts = classification.confusion()
                    names = tuple(_name(classification.classes, j) for j in range(counts.shape[1]))
                    note = plot_confusion(counts, names, results / CONFUSION_PLOT)
            else:
                note = (
                    f"no confusion matrix: it is written for up to {MAX_MATRIX} classes; "
                    f"{CLASSES} and {IMAGES} have the same per class and per image"
                )
        if result.retrieval is not None:
            write_benchmark(results, record, result.retrieval, gem_p)
    except OSError as error:
        raise MultigrainError(
            ErrorKind.STORAGE,
            f"the results cannot be written ({error.strerror}): "
            + os_error_hint(error, "write in the job's folder", "free some space and try again"),
        ) from error
    return note


def keep_best(results: Path) -> None:
    """Copies the files of an evaluation to ``results/best``, in place of earlier ones.

    Raises:
        OSError: if they cannot be copied.
    """
    if not results.is_dir():
        return
    aside, best = results / ".best", results / BEST
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for path in results.iterdir():
        if path.is_file() and not path.is_symlink():
            shutil.copyfile(path, aside / path.name)
    shutil.rmtree(best, ignore_errors=True)
    aside.rename(best)


def _image_rows(
    folder: ImageFolder,
    classification: ClassificationResult | None,
    copies: CopyDetectionResult | None,
) -> Iterable[list[object]]:
    header: list[object] = ["path", "class", "read"]
    if classification is not None:
        header += ["predicted", "rank", "loss", "probability"]
    if copies is not None:
        header += ["copy_rank", "copy_ap"]
    yield header
    for index, path in enumerate(folder.paths):
        ranks = [r.rank[index] for r in (classification, copies) if r is not None]
        read = all(rank != _UNREAD for rank in ranks)
        row: list[object] = [stored_path(path), folder.classes[folder.labels[index]], int(read)]
        if classification is not None:
            row += _class_columns(folder, classification, index) if read else [""] * 4
        if copies is not None:
            rank = int(copies.rank[index])
            row += [rank, average_precision([rank], 1)] if read else ["", ""]
        yield row


def _class_columns(folder: ImageFolder, result: ClassificationResult, index: int) -> list[object]:
    predicted = int(result.predicted[index])
    return [
        _name(folder.classes, predicted),
        int(result.rank[index]),
        f"{result.loss[index]:.6f}",
        f"{result.probability[index]:.6f}",
    ]


def _class_rows(result: ClassificationResult) -> Iterable[list[object]]:
    """Rows of images, correct predictions and top-1 per class; top-1 empty without images."""
    yield ["class", "images", "recognised", "top1"]
    labels = result.labels[result.read]
    right_labels = labels[result.rank[result.read] == 0]
    of_class = np.bincount(labels, minlength=len(result.classes))
    right_of = np.bincount(right_labels, minlength=len(result.classes))
    for number, name in enumerate(result.classes):
        images, right = int(of_class[number]), int(right_of[number])
        yield [name, images, right, f"{right / images:.6f}" if images else ""]


def _confusion_rows(result: ClassificationResult) -> Iterable[list[object]]:
    counts = result.confusion()
    yield ["true \\ predicted", *(_name(result.classes, j) for j in range(counts.shape[1]))]
    for number, name in enumerate(result.classes):
        yield [name, *counts[number].tolist()]


def _name(classes: tuple[str, ...], number: int) -> str:
    """Returns a class's name; its index if the network has more outputs than class names."""
    return classes[number] if number < len(classes) else str(number)


def _write_csv(path: Path, rows: Iterable[list[object]]) -> None:
    with open_text_to_write(path) as file:
        csv.writer(file).writerows(rows)


def plot_confusion(counts: NDArray[np.int64], names: tuple[str, ...], path: Path) -> str:
    """Plots a confusion matrix as PNG: true class by predicted class, rows normalized.

    Args:
        counts: (classes, outputs).
        names: names of the outputs.
        path: the file to write.

    Returns:
        A note if names cannot be drawn; otherwise "".

    Raises:
        OSError: if it cannot be written.
    """
    # Imported here because only rank 0 plots. Not pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = counts.shape
    plotted: PlotNames | None = None
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.35 * max(rows, columns), 5.0, 14.0))
    figure = Figure(figsize=(side + 1.2, side), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="equal")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="fraction of the class's images")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if max(rows, columns) <= _MAX_NAMED:
        plotted = plot_names(names)
        style: Any = {"parse_math": False, "fontfamily": plotted.families}
        axes.set_xticks(range(columns), plotted.shown[:columns], rotation=90, **style)
        axes.set_yticks(range(rows), plotted.shown[:rows], **style)
    if max(rows, columns) <= _MAX_COUNTED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[row, column] > 0.5 else "black",
            )
    total = int(counts.sum())
    right = int(np.trace(counts[:, :rows]))
    axes.set_title(f"{total} images, {right / max(total, 1):.2%} correct")
    with os.fdopen(open_to_write(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        figure.savefig(file, format="png")
    return f"{path.name}: {plotted.note}" if plotted is not None and plotted.note else ""
