"""Accuracy of whitened vectors in bfloat16 and int8 compared with float32.

``python -m benchmarks.whitened MODELS_DIR``, in about a minute. Whitening scales up the directions
of low variance and with them the rounding errors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.calibrated import PREPROCESSING, write_bundle
from benchmarks.photographs import COUNT, photographs
from benchmarks.serving_limit import cosines
from multigrain.bundle.folder import read
from multigrain.engine.runtimes.base import Bundle, Compute, FloatArray, Pixels
from multigrain.engine.runtimes.choice import load
from multigrain.images.preprocess import crop
from multigrain.whitening import Moments, fit_whitening

_FIT_COUNT = 600
_RUNTIMES = ("openvino-bf16", "openvino-int8")


def embeddings(bundle: Bundle, name: str, images: list[Pixels]) -> FloatArray:
    """Embeddings without normalization."""
    (runtime,) = load(name, bundle, Compute()).runtimes.values()
    parts = [runtime.run_pixels(images[first : first + 8]) for first in range(0, len(images), 8)]
    return np.concatenate([part.embedding for part in parts])


def main(models_dir: Path) -> None:
    folder = write_bundle(models_dir)
    bundle = Bundle(folder, read(folder))
    images = [crop(data, PREPROCESSING) for data in photographs(2 * COUNT + _FIT_COUNT)]
    shown, fitted = images[:COUNT], images[2 * COUNT :]  # int8 was calibrated with those in between
    exact = embeddings(bundle, "openvino-f32", [*shown, *fitted])
    moments = Moments(exact.shape[1])
    moments.add(exact[COUNT:])
    whitening = fit_whitening(moments)
    right = whitening.apply(exact[:COUNT])
    print("| runtime | plain: mean, smallest cosine | whitened: mean, smallest cosine |")
    print("|---|---|---|")
    for name in _RUNTIMES:
        vectors = embeddings(bundle, name, shown)
        plain, white = cosines(vectors, exact[:COUNT]), cosines(whitening.apply(vectors), right)
        print(
            f"| {name} | {plain.mean():.5f}, {plain.min():.5f} "
            f"| {white.mean():.5f}, {white.min():.5f} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
