"""Recall of searches whose queries and database were embedded in different precisions.

``python -m benchmarks.mixed_vectors --model BUNDLE IMAGES``, in a few minutes: BUNDLE is the folder
of an exported model with an 8-bit graph, IMAGES a folder of images (in class folders or not) that
it was neither trained nor calibrated with. May be given several times. Without it, the images are
the photographs of ``benchmarks.photographs`` and the model is a ResNet-50 with random weights: that
shows the error of the precisions, not the recall of a trained network.

Every image is in the database. Two distorted copies of each image (crop, rotation, tone, blur,
noise, JPEG: ``multigrain.evaluate.distortion``) search for their original; with class folders, each
image also searches for the others of its class. The queries are in one precision, the database in
another. The notes say how far copies are from their originals, beside which an error has to be
small.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from benchmarks.calibrated import write_bundle
from benchmarks.photographs import COUNT, photographs
from multigrain.bundle.folder import read
from multigrain.data.image_folder import ImageFolder, scan_images
from multigrain.engine.runtimes.base import Bundle, Compute, FloatArray, Pixels, Runtime
from multigrain.engine.runtimes.choice import load
from multigrain.errors import MultigrainError
from multigrain.evaluate.distortion import distort
from multigrain.evaluate.retrieval import average_precision
from multigrain.evaluate.search import Search, l2_normalize
from multigrain.export.int8_cost import cosines
from multigrain.images.decode import decode_image
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import center_crop

_PRECISIONS = ("f32", "bf16", "int8")
_COPIES = 2
_SEED = 7
_BATCH = 8
# Positions in the list of hits that applications look at.
_TOP = (1, 10)


def pictures(
    folder: ImageFolder, preprocessing: Preprocessing
) -> tuple[list[Pixels], list[list[Pixels]]]:
    """Each image, and its copies."""
    originals: list[Pixels] = []
    copies: list[list[Pixels]] = [[] for _ in range(_COPIES)]
    for index in range(len(folder)):
        picture = decode_image(folder.read(index), folder.limits)
        originals.append(np.asarray(center_crop(picture, preprocessing)))
        for number, made in enumerate(copies):
            copy = distort(picture, Random((_SEED + number) << 64 | index))
            made.append(np.asarray(center_crop(copy, preprocessing)))
    return originals, copies


def embed(runtime: Runtime, images: list[Pixels]) -> FloatArray:
    """Embeddings, not normalized."""
    starts = range(0, len(images), _BATCH)
    parts = [runtime.run_pixels(images[s : s + _BATCH], scores=False) for s in starts]
    return np.concatenate([part.embedding for part in parts])


def search(
    database: FloatArray, queries: FloatArray, groups: NDArray[np.int64], *, own: bool
) -> dict[str, float]:
    """Recall at each position (a query has found something) and mAP, from 0 to 1."""
    everything = np.ones(len(database), np.bool_)
    finder = Search(l2_normalize(database), groups, everything)
    itself = np.arange(len(queries)) if own else None
    hits = [h.ranks for h in finder.find(l2_normalize(queries), groups, itself) if len(h.ranks)]
    found = {f"recall@{top}": float(np.mean([h[0] < top for h in hits])) for top in _TOP}
    return {**found, "mAP": float(np.mean([average_precision(h, len(h)) for h in hits]))}


def measure(report: results.Report, bundle: Bundle, folder: ImageFolder) -> None:
    """Adds a table of all pairs of precisions."""
    preprocessing = bundle.manifest.heads[0].preprocessing
    originals, copies = pictures(folder, preprocessing)
    vectors: dict[str, tuple[FloatArray, list[FloatArray]]] = {}
    name = f"{bundle.manifest.name} ({bundle.manifest.model.trunk}, {preprocessing.size} px)"
    table = report.table(
        f"{name}, {len(originals)} images",
        (
            *("copy: recall@1", "copy: recall@10", "copy: mAP"),
            *("class: recall@1", "class: recall@10", "class: mAP"),
        ),
        first="database, queries",
    )
    for precision in _PRECISIONS:
        try:
            loaded = load(f"openvino-{precision}", bundle, Compute(max_batch=8))
        except MultigrainError as error:
            table.missing(precision, error.message)
            continue
        runtime = next(iter(loaded.runtimes.values()))
        vectors[precision] = embed(runtime, originals), [embed(runtime, one) for one in copies]
    classes = np.unique([path.partition("/")[0] for path in folder.paths], return_inverse=True)[1]
    labeled = 1 < classes.max() + 1 < len(classes)
    itself = np.arange(len(originals))
    for own, (database, _) in vectors.items():
        for other, (queries, copied) in vectors.items():
            runs = [search(database, one, itself, own=False) for one in copied]
            cells = [f"{np.mean([run[key] for run in runs]):.4f}" for key in runs[0]]
            if labeled:
                found = search(database, queries, classes, own=True)
                cells += [f"{value:.4f}" for value in found.values()]
            table.row(f"{own}, {other}", *(cells + ["-"] * 3)[:6])
    exact, exact_copies = vectors["f32"]
    middle, high = np.percentile(
        np.concatenate([cosines(exact, c) for c in exact_copies]), (50, 90)
    )
    report.note(
        f"{name}: the cosine of an image and its copy in float32 has a median of {middle:.3f} and "
        f"a 90th percentile of {high:.3f}."
    )
    for precision, (rows, _) in vectors.items():
        if precision != "f32":
            own_cosines = cosines(exact, rows)
            report.note(
                f"{name}: the cosine of {precision} and float32 has a mean of "
                f"{own_cosines.mean():.5f} and a first percentile of "
                f"{np.percentile(own_cosines, 1):.5f}; the smallest is {own_cosines.min():.5f}."
            )


def main() -> int:
    parser = results.parser("mixed_vectors")
    parser.add_argument(
        "--model", nargs=2, type=Path, action="append", default=[], metavar=("BUNDLE", "IMAGES"),
        help="a bundle's folder, and images that it has not seen; may be repeated",
    )  # fmt: skip
    options = parser.parse_args()
    report = results.Report("mixed_vectors", options)
    for bundle, images in options.model:
        measure(report, Bundle(bundle, read(bundle)), scan_images(images))
    if not options.model:
        with results.data_folder(options) as data, tempfile.TemporaryDirectory() as images:
            folder = write_bundle(data)
            # The graph was calibrated with those before.
            for number, picture in enumerate(photographs(4 * COUNT)[2 * COUNT :]):
                (Path(images) / f"{number:03}.jpg").write_bytes(picture)
            measure(report, Bundle(folder, read(folder)), scan_images(Path(images)))
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
