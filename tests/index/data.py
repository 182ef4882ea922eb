"""Vectors like those of images: classes, objects and near copies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def image_vectors(
    count: int, size: int, *, seed: int = 0, classes: int = 50, copies: float = 0.2
) -> NDArray[np.float32]:
    """Normalized vectors (count, size); the last ones, a fraction, are near copies of others."""
    random = np.random.default_rng(seed)
    latent = 96
    spectrum = np.arange(1, latent + 1) ** -0.5
    centers = random.standard_normal((classes, latent))
    points = centers[random.integers(0, classes, count)]
    points = points + 0.8 * random.standard_normal((count, latent))
    copied = int(count * copies)
    if copied:
        sources = random.integers(0, count - copied, copied)
        noise = random.uniform(0.0, 0.3, (copied, 1)) * random.standard_normal((copied, latent))
        points[count - copied :] = points[sources] + noise
    features = np.maximum((points * spectrum) @ random.standard_normal((latent, size)), 0.0)
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
