"""Speed and accuracy of each runtime with preprocessing and network in one process.

ResNet-50 with GeM at 224 px, random weights, BatchNorm statistics of photographs (``calibrated``).
The limit of serving is 1 / (1 / preprocessing + 1 / network), both in images per second on all
cores. Cosines and top-1 are relative to MindSpore in float32. Whitening scales up the directions of
low variance and with them the errors of rounding; here it is fitted to 600 photographs that are cut
from the same two pictures, its worst case. A runtime that this machine lacks is a row that says so.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import results
from benchmarks.calibrated import PREPROCESSING, REFERENCE, write_bundle
from benchmarks.photographs import COUNT, photographs
from multigrain.bundle.folder import read
from multigrain.engine.protocol import Dtype, EmbeddingOptions
from multigrain.engine.runtimes.base import Bundle, Compute, FloatArray, Outputs, Pixels, Runtime
from multigrain.engine.runtimes.choice import load
from multigrain.engine.worker import encode_vector
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.decode import decode_image
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import crop, preprocess, preprocess_image
from multigrain.machine import available_cpus
from multigrain.whitening import Moments, Whitening, fit_whitening

# The first float32 runtime fits the whitening that the others are compared with.
RUNTIMES = ("openvino-f32", "onnxruntime", "openvino-int8", "openvino-bf16")
FLOAT32 = ("openvino-f32", "onnxruntime")
_SECONDS = 4.0
_FIT_COUNT = 600
_COLUMNS = (
    *("batch 1, ms", "batches, images/s", "limit, images/s", "smallest cosine"),
    *("whitened: mean cosine", "whitened: smallest", "same top-1", "load, s"),
)


def rate(work: Callable[[], int], seconds: float = _SECONDS) -> float:
    """Images per second of ``work``, which returns how many it did; the best third counts."""
    work()
    best = 0.0
    for _ in range(3):
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds / 3:
            done += work()
        best = max(best, done / (time.perf_counter() - start))
    return best


def preprocessing_rate(files: list[bytes], threads: int) -> float:
    """Images per second with this many decoding threads."""
    with ThreadPoolExecutor(threads) as pool:

        def work() -> int:
            return sum(1 for _ in pool.map(lambda data: crop(data, PREPROCESSING), files))

        return rate(work)


def engine_rate(runtime: Runtime, images: list[Pixels], batch: int) -> float:
    def work() -> int:
        runtime.run_pixels(images[:batch], scores=False)
        return batch

    return rate(work)


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    return np.asarray((a64 * b64).sum(axis=1) / norms)


def compute(runtime: Runtime, images: list[Pixels]) -> Outputs:
    parts = [runtime.run_pixels(images[start : start + 8]) for start in range(0, len(images), 8)]
    return Outputs(
        np.concatenate([part.embedding for part in parts]),
        np.concatenate([part.logits for part in parts]),
    )


def encodings(report: results.Report, embedding: FloatArray) -> None:
    """Size and accuracy of the data types of normalized embeddings."""
    table = report.table(
        "Data types of responses, relative to the float32 embedding",
        ("bytes per vector", "smallest cosine", "largest difference of a component"),
        first="data type",
    )
    kinds: dict[Dtype, str] = {"fp32": "<f4", "fp16": "<f2", "int8": "i1"}
    for dtype, kind in kinds.items():
        rows, size = [], 0
        for row in embedding:
            encoded = encode_vector(row, EmbeddingOptions(normalize=True, dtype=dtype))
            size = len(encoded.data)
            rows.append(np.frombuffer(encoded.data, kind) * np.float32(encoded.scale or 1))
        got = np.stack(rows).astype(np.float32)
        exact = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
        difference = float(np.abs(got - exact).max())
        table.row(dtype, size, shown(cosines(got, embedding).min()), difference)


def large(report: results.Report, runtime: Runtime) -> None:
    """Time and accuracy of scaled decoding for images of 12 megapixels."""
    files = []
    for number, data in enumerate(photographs(4)):
        image = Image.open(io.BytesIO(data)).resize((4000, 3000), Image.Resampling.BICUBIC)
        noise = np.random.default_rng(number).normal(scale=4, size=(3000, 4000, 1))
        pixels = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    batches, seconds = [], []

    def decode_fully(data: bytes, preprocessing: Preprocessing) -> NDArray[np.float32]:
        return preprocess_image(decode_image(data), preprocessing)

    for prepare in (preprocess, decode_fully):
        start = time.perf_counter()
        batches.append(np.stack([prepare(data, PREPROCESSING) for data in files]))
        seconds.append((time.perf_counter() - start) / len(files))
    scaled, full = (runtime.run(batch).embedding for batch in batches)
    report.compare(
        "a JPEG of 4000 x 3000, decoded at a fraction of its size", 1e3 * seconds[0], unit="ms",
        over=1e3 * seconds[1], reference="decoded at full size",
    )  # fmt: skip
    report.compare("1 - cosine of the two embeddings", float(1 - cosines(scaled, full).min()))


def shown(cosine: float) -> str:
    """A cosine, with the digits that matter."""
    return f"{cosine:.7f}" if cosine > 0.99999 else f"{cosine:.5f}"


class Exactness:
    """Compares embeddings with MindSpore's, plain and whitened."""

    def __init__(self, expected: Outputs) -> None:
        self._expected = expected
        self._whitening: Whitening | None = None

    def fit(self, runtime: Runtime) -> None:
        """Fits the whitening to embeddings of photographs that are not compared."""
        # int8 is calibrated with the second COUNT.
        fitted = [crop(data, PREPROCESSING) for data in photographs(2 * COUNT + _FIT_COUNT)]
        found = compute(runtime, fitted[2 * COUNT :]).embedding
        moments = Moments(found.shape[1])
        moments.add(found)
        self._whitening = fit_whitening(moments)

    def cells(self, got: Outputs) -> tuple[str, str, str, str]:
        """Smallest cosine; mean and smallest of whitened vectors; share of the same top-1."""
        plain = cosines(got.embedding, self._expected.embedding)
        same = (got.logits.argmax(1) == self._expected.logits.argmax(1)).mean()
        white = plain
        if self._whitening is not None:
            right = self._whitening.apply(self._expected.embedding)
            white = cosines(self._whitening.apply(got.embedding), right)
        return (
            shown(float(plain.min())),
            shown(float(white.mean())),
            shown(float(white.min())),
            f"{same:.1%}",
        )


def measure(report: results.Report, models_dir: Path) -> None:
    """Adds a row for each runtime, and what does not depend on one."""
    folder = write_bundle(models_dir)
    bundle = Bundle(folder, read(folder))
    files = photographs()
    images = [crop(data, PREPROCESSING) for data in files]
    stored = np.load(folder / REFERENCE)
    exactness = Exactness(Outputs(stored["embedding"], stored["logits"]))
    cores = available_cpus()
    one, both = preprocessing_rate(files, 1), preprocessing_rate(files, cores)
    report.compare("preprocessing a photograph on one core", 1e3 / one, unit="ms")
    report.compare(
        f"preprocessing on {cores} cores", both, unit="images/s", over=one, reference="one core"
    )
    table = report.table(
        "Runtimes; cosines and top-1 relative to MindSpore in float32", _COLUMNS, first="runtime"
    )
    exact: Runtime | None = None
    for name in RUNTIMES:
        start = time.perf_counter()
        try:
            (runtime,) = load(name, bundle, Compute()).runtimes.values()
        except MultigrainError as error:
            if error.kind is not ErrorKind.UNSUPPORTED:
                raise
            table.missing(name, error.message)
            continue
        seconds = time.perf_counter() - start
        if exact is None and name in FLOAT32:
            exact = runtime
            exactness.fit(runtime)
        single, full = (engine_rate(runtime, images, n) for n in (1, runtime.best_batch))
        cells = exactness.cells(compute(runtime, images))
        table.row(name, 1e3 / single, full, 1 / (1 / both + 1 / full), *cells, round(seconds, 1))
    if exact is not None:
        large(report, exact)
    encodings(report, stored["embedding"])


def main() -> int:
    parser = results.parser("serving_limit")
    options = parser.parse_args()
    with results.data_folder(options) as data:
        models = data / "models"
        write_bundle(models)  # takes a minute, and is not part of the measurement
        report = results.Report("serving_limit", options)
        measure(report, models)
        return report.finish()


if __name__ == "__main__":
    sys.exit(main())
