"""Whitened vectors in bfloat16 and in 8 bits beside those in float32.

``python -m benchmarks.whitened MODELS_DIR``, in about a minute. Whitening multiplies the
directions in which vectors differ little, and with them whatever a format rounds off.
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
from multigrain.whitening import Moments, fit

_FITTED = 600
_OTHERS = ("openvino-bf16", "openvino-int8")


def embeddings(bundle: Bundle, name: str, pictures: list[Pixels]) -> FloatArray:
    """Not normalized."""
    (runtime,) = load(name, bundle, Compute()).runtimes.values()
    parts = [
        runtime.run_pixels(pictures[first : first + 8]) for first in range(0, len(pictures), 8)
    ]
    return np.concatenate([part.embedding for part in parts])


def main(models_dir: Path) -> None:
    folder = write_bundle(models_dir)
    bundle = Bundle(folder, read(folder))
    pictures = [crop(data, PREPROCESSING) for data in photographs(2 * COUNT + _FITTED)]
    shown, fitted = pictures[:COUNT], pictures[2 * COUNT :]  # between them: what 8 bits saw
    exact = embeddings(bundle, "openvino-f32", [*shown, *fitted])
    moments = Moments(exact.shape[1])
    moments.add(exact[COUNT:])
    whitening = fit(moments)
    right = whitening.apply(exact[:COUNT])
    print("| runtime | plain: mean, smallest cosine | whitened: mean, smallest cosine |")
    print("|---|---|---|")
    for name in _OTHERS:
        vectors = embeddings(bundle, name, shown)
        plain, white = cosines(vectors, exact[:COUNT]), cosines(whitening.apply(vectors), right)
        print(
            f"| {name} | {plain.mean():.5f}, {plain.min():.5f} "
            f"| {white.mean():.5f}, {white.min():.5f} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
