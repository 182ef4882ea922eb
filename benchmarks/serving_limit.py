"""The machine's limits: preprocessing and inference on all cores in one process.

``python -m benchmarks.serving_limit MODELS_DIR``, on an idle machine. The limit of serving is
1 / (1 / preprocessing + 1 / inference), both in images per second on all cores.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.calibrated import PREPROCESSING, REFERENCE, write_bundle
from benchmarks.photographs import photographs
from multigrain.bundle.folder import read
from multigrain.engine.protocol import Dtype, EmbeddingOptions
from multigrain.engine.runtimes.base import Bundle, Compute, FloatArray, Outputs, Pixels, Runtime
from multigrain.engine.runtimes.choice import load
from multigrain.engine.worker import encode_vector
from multigrain.images.decode import decode_image
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import crop, preprocess, preprocess_image

RUNTIMES = ("openvino-int8", "openvino-bf16", "openvino-f32", "onnxruntime")
_SECONDS = 4.0


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


def encodings(embedding: FloatArray) -> None:
    """Size and accuracy of the dtypes of normalized embeddings."""
    print("| dtype | bytes per vector | smallest cosine | largest difference |\n|---|---|---|---|")
    kinds: dict[Dtype, str] = {"fp32": "<f4", "fp16": "<f2", "int8": "i1"}
    for dtype, kind in kinds.items():
        rows, size = [], 0
        for row in embedding:
            encoded = encode_vector(row, EmbeddingOptions(normalize=True, dtype=dtype))
            size = len(encoded.data)
            rows.append(np.frombuffer(encoded.data, kind) * np.float32(encoded.scale or 1))
        got = np.stack(rows).astype(np.float32)
        exact = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
        print(
            f"| {dtype} | {size} | {cosines(got, embedding).min():.7f} | "
            f"{np.abs(got - exact).max():.2g} |"
        )


def large(runtime: Runtime) -> None:
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
    print(
        f"4000 x 3000: {1e3 * seconds[0]:.0f} ms scaled, {1e3 * seconds[1]:.0f} ms full, "
        f"smallest cosine {cosines(scaled, full).min():.5f}"
    )


def main(models_dir: Path) -> None:
    folder = write_bundle(models_dir)
    bundle = Bundle(folder, read(folder))
    files = photographs()
    images = [crop(data, PREPROCESSING) for data in files]
    expected = np.load(folder / REFERENCE)
    cores = os.cpu_count() or 1
    one, both = preprocessing_rate(files, 1), preprocessing_rate(files, cores)
    print(f"preprocessing: {1e3 / one:.2f} ms on one core, {both:.0f} images/s on {cores}")
    print(
        "| runtime | batch 1, ms | full batch, images/s | limit, images/s | smallest cosine | "
        "equal top-1 | load, s |\n|---|---|---|---|---|---|---|"
    )
    for name in RUNTIMES:
        start = time.perf_counter()
        (runtime,) = load(name, bundle, Compute()).runtimes.values()
        seconds = time.perf_counter() - start
        single, full = (engine_rate(runtime, images, n) for n in (1, runtime.best_batch))
        got = compute(runtime, images)
        cosine = cosines(got.embedding, expected["embedding"]).min()
        same = (got.logits.argmax(1) == expected["logits"].argmax(1)).mean()
        print(
            f"| {name} | {1e3 / single:.1f} | {full:.0f} | {1 / (1 / both + 1 / full):.0f} | "
            f"{cosine:.5f} | {same:.1%} | {seconds:.1f} |",
            flush=True,
        )
        if name == "openvino-f32":
            compared = runtime
        del runtime
    large(compared)
    encodings(expected["embedding"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
