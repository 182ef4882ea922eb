"""The two Kronecker factors of one layer, on the host."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Factors:
    """Diagonal blocks of sqrt(T) A and sqrt(T) G, each (count, size, size) float32.

    ``trace`` is that of the layer's Fisher matrix, T tr(A) tr(G); cutting a factor in diagonal
    blocks does not change it, and the blocks' padding is 0.
    """

    a: np.ndarray
    g: np.ndarray

    @property
    def trace(self) -> float:
        return trace(self.a) * trace(self.g)


def trace(blocks: np.ndarray) -> float:
    """Sum of the diagonals of all blocks, in float64."""
    return float(np.einsum("kii->", blocks, dtype=np.float64))


def split_damping(
    factors: Factors, dims: tuple[int, int], damping: float, *, pi_correction: bool
) -> tuple[float, float]:
    """What is added to the diagonals of sqrt(T) A and sqrt(T) G; their product is ``damping``.

    Without pi correction, as in THOR, both are ``sqrt(damping)``. With it (K-FAC, arXiv
    1503.05671, section 6.3) A gets ``pi sqrt(damping)`` and G ``sqrt(damping) / pi``, where

        pi^2 = (tr(A) / dim(A)) / (tr(G) / dim(G))

    Args:
        dims: dim(A) and dim(G).
        damping: lambda.
    """
    root = math.sqrt(damping)
    if not pi_correction:
        return root, root
    a, g = trace(factors.a) / dims[0], trace(factors.g) / dims[1]
    # Where a factor vanishes, or is not finite (it is refused later), there is no ratio.
    pi = math.sqrt(a / g) if a > 0 and g > 0 else 1.0
    if not (math.isfinite(pi) and pi > 0):
        pi = 1.0
    return pi * root, root / pi
