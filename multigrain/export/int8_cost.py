"""What an 8-bit graph costs: vectors and scores of two graphs, compared on the same images.

The bars. ``auto`` serves the 8-bit graph wherever it is the fastest, without being asked, so nobody
should notice it:

- a mean cosine of at least 0.99 (``MIN_COSINE["int8"]``) and a first percentile of at least 0.95,
  which every image of the reference must have too. A distorted copy of an image
  (``multigrain.evaluate.distortion``) is farther from it: see benchmarks/mixed_vectors.py.
- top-1, object mAP and copy mAP lose at most a hundredth. Cosines alone do not show whether
  neighbors change places: the vectors of a network may all lie close together.

A few hundred images tell such a loss only roughly. A loss therefore counts as far as chance does
not explain it: less two standard errors of the differences by image. With few images the cosines
decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multigrain.bundle.manifest import GraphScores, Int8Entry, VectorLoss, VectorScores
from multigrain.bundle.reference import MIN_COSINE, MIN_COSINE_P1
from multigrain.engine.runtimes.base import FloatArray, Outputs, Pixels, Runtime
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate.distortion import distort
from multigrain.evaluate.retrieval import average_precision
from multigrain.evaluate.search import Search, l2_normalize
from multigrain.export.int8_images import Int8Images, Sample
from multigrain.images.decode import decode_image
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import center_crop, crop
from multigrain.whitening import StoredWhitening

#: Largest loss of top-1, object mAP and copy mAP beyond what chance explains.
MAX_LOSS: Final = 0.01
_STANDARD_ERRORS: Final = 2.0
_BATCH: Final = 32
_COPY_SEED: Final = 1 << 64


@dataclass(frozen=True)
class Cost:
    """The measurements, and in which ways they are outside the bars (empty = within)."""

    entry: Int8Entry
    problems: tuple[str, ...]


@dataclass
class _Outputs:
    """Outputs of one graph for the same images and their copies, a row each."""

    original: list[FloatArray] = field(default_factory=list)
    copy: list[FloatArray] = field(default_factory=list)
    logits: list[FloatArray] = field(default_factory=list)

    def add(self, originals: Outputs, copies: Outputs) -> None:
        self.original.append(originals.embedding)
        self.logits.append(originals.logits)
        self.copy.append(copies.embedding)


def measure_cost(
    file: str,
    graphs: tuple[Runtime, Runtime],
    images: Int8Images,
    calibrated: int,
    preprocessing: Preprocessing,
    whitening: StoredWhitening | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Cost:
    """Compares a quantized graph with the float32 graph on the images for evaluation.

    Args:
        file: name of the quantized graph's file.
        graphs: the float32 graph and the quantized one.
        images: their ``evaluation`` is used.
        calibrated: number of images that calibrated the graph.
        preprocessing: of the graphs.
        whitening: whitened vectors are compared too.
        on_progress: called after each batch.

    Raises:
        MultigrainError: DATASET, if no image is readable.
    """
    sample = images.evaluation
    outputs = (_Outputs(), _Outputs())
    indices: list[int] = []
    for chunk in _chunks(sample, preprocessing):
        indices += [index for index, _, _ in chunk]
        for runtime, kept in zip(graphs, outputs, strict=True):
            originals = runtime.run_pixels([pixels for _, pixels, _ in chunk])
            kept.add(originals, runtime.run_pixels([copy for _, _, copy in chunk]))
            on_progress()
    if not indices:
        raise MultigrainError(ErrorKind.DATASET, "no image for the comparison is readable")
    groups = np.array([sample.groups[index] for index in indices])
    labels = np.array([sample.labels[index] for index in indices])
    f32, int8 = ([np.concatenate(o.original), np.concatenate(o.copy)] for o in outputs)
    vectors, problems = compare_vectors((f32[0], f32[1]), (int8[0], int8[1]), groups)
    whitened: VectorLoss | None = None
    if whitening is not None:
        white = [tuple(whitening.apply(rows) for rows in graph) for graph in (f32, int8)]
        whitened, more = compare_vectors(
            (white[0][0], white[0][1]), (white[1][0], white[1][1]), groups
        )
        problems += [f"whitened: {problem}" for problem in more]
    logits = [np.concatenate(o.logits) for o in outputs]
    best = [np.argsort(-rows, axis=1, kind="stable")[:, :5] for rows in logits]
    scores, lost = _accuracies(best, labels)
    if lost is not None and (excess := _excess(lost)) > MAX_LOSS:
        problems.append(_loss_text("top-1", lost, excess))
    entry = Int8Entry(
        file=file,
        calibration_images=calibrated,
        images=len(indices),
        held_out=images.held_out,
        same_top1=float((best[0][:, 0] == best[1][:, 0]).mean()) if best[0].size else 1.0,
        labelled_images=int((labels >= 0).sum()),
        f32=scores[0] if scores else None,
        int8=scores[1] if scores else None,
        whitened=whitened,
        **vectors.model_dump(),
    )
    return Cost(entry, tuple(problems))


def compare_vectors(
    f32: tuple[FloatArray, FloatArray],
    int8: tuple[FloatArray, FloatArray],
    groups: NDArray[np.int64],
) -> tuple[VectorLoss, list[str]]:
    """Compares the vectors of images, and of copies of them.

    Args:
        f32: vectors of the float32 graph (N, C): of the images and of their copies.
        int8: those of the quantized graph.
        groups: (N,), the group of each image.

    Returns:
        The comparison, and in which ways it is outside the bars.
    """
    found = cosines(f32[0], int8[0])
    if not all(np.isfinite(rows).all() for rows in (*f32, *int8)):
        return VectorLoss(cosine_mean=0.0, cosine_min=0.0), ["non-finite vectors"]
    vectors = [tuple(l2_normalize(rows) for rows in graph) for graph in (f32, int8)]
    itself = np.arange(len(groups))
    copies = [_precisions(vector[0], vector[1], itself, own=False) for vector in vectors]
    objects = [_precisions(vector[0], vector[0], groups, own=True) for vector in vectors]
    searches = [
        VectorScores(copy_map=float(c.mean()), object_map=float(o.mean()) if len(o) else None)
        for c, o in zip(copies, objects, strict=True)
    ]
    loss = VectorLoss(
        cosine_mean=float(found.mean()),
        cosine_p1=float(np.percentile(found, 1)),
        cosine_min=float(found.min()),
        f32_search=searches[0],
        int8_search=searches[1],
    )
    problems = []
    if loss.cosine_mean < MIN_COSINE["int8"]:
        problems.append(f"a mean cosine of {loss.cosine_mean:.4f}, less than {MIN_COSINE['int8']}")
    if loss.cosine_p1 < MIN_COSINE_P1:
        problems.append(
            f"a first percentile of the cosines of {loss.cosine_p1:.4f}, less than {MIN_COSINE_P1}"
        )
    for name, (before, after) in (("object mAP", objects), ("copy mAP", copies)):
        lost = before - after
        if len(lost) and (excess := _excess(lost)) > MAX_LOSS:
            problems.append(_loss_text(name, lost, excess))
    return loss, problems


def cosines(a: FloatArray, b: FloatArray) -> NDArray[np.float64]:
    """The cosine of each row of (N, C) with the same row of the other."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    result: NDArray[np.float64] = (left * right).sum(axis=1) / np.maximum(norms, 1e-30)
    return result


def _precisions(
    database: FloatArray, queries: FloatArray, groups: NDArray[np.int64], *, own: bool
) -> NDArray[np.float64]:
    """Average precision of each query that has something to find.

    Args:
        own: whether the queries are the images of the database, which must not find themselves.
    """
    search = Search(database, groups, np.ones(len(database), np.bool_))
    hits = search.find(queries, groups, np.arange(len(queries)) if own else None)
    found = [average_precision(one.ranks, len(one.ranks)) for one in hits if len(one.ranks)]
    return np.array(found, np.float64)


def _accuracies(
    best: list[NDArray[np.int64]], labels: NDArray[np.int64]
) -> tuple[list[GraphScores], NDArray[np.float64] | None]:
    """Accuracy of each graph on the labeled images, and the loss of top-1 by image."""
    known = labels >= 0
    if not known.any():
        return [], None
    hits = [rows[known] == labels[known, None] for rows in best]
    scores = [
        GraphScores(top1=float(rows[:, 0].mean()), top5=float(rows.any(axis=1).mean()))
        for rows in hits
    ]
    return scores, hits[0][:, 0].astype(np.float64) - hits[1][:, 0]


def _excess(lost: NDArray[np.float64]) -> float:
    """The mean loss, less what chance explains."""
    error = lost.std(ddof=1) / np.sqrt(len(lost)) if len(lost) > 1 else 0.0
    return float(lost.mean() - _STANDARD_ERRORS * error)


def _loss_text(name: str, lost: NDArray[np.float64], excess: float) -> str:
    return (
        f"a loss of {lost.mean():.4f} in {name} ({excess:.4f} beyond chance), more than {MAX_LOSS}"
    )


def _chunks(
    sample: Sample, preprocessing: Preprocessing
) -> Iterator[list[tuple[int, Pixels, Pixels]]]:
    """Yields index, pixels and a distorted copy's pixels of the readable images, some at a time."""
    chunk: list[tuple[int, Pixels, Pixels]] = []
    folder = sample.folder
    for index in sample.indices:
        try:
            data = folder.read(index)
            pixels = crop(data, preprocessing, folder.limits)
            picture: Image.Image = decode_image(data, folder.limits)
        except MultigrainError:
            continue  # the probe rejects folders with many unreadable images
        copy = distort(picture, Random(_COPY_SEED | index))
        chunk.append((index, pixels, np.asarray(center_crop(copy, preprocessing))))
        if len(chunk) == _BATCH:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def describe(entry: Int8Entry) -> str:
    """What an 8-bit graph costs, in one line."""
    parts = [
        f"{entry.images} {entry.held_out} images",
        f"cosine {entry.cosine_mean:.4f} (first percentile {entry.cosine_p1:.4f})",
    ]
    if entry.f32 is not None and entry.int8 is not None:
        parts.append(f"top-1 {entry.f32.top1:.4f} to {entry.int8.top1:.4f}")
    before, after = entry.f32_search, entry.int8_search
    if before is not None and after is not None:
        if before.object_map is not None and after.object_map is not None:
            parts.append(f"object mAP {before.object_map:.4f} to {after.object_map:.4f}")
        parts.append(f"copy mAP {before.copy_map:.4f} to {after.copy_map:.4f}")
    return ", ".join(parts)
