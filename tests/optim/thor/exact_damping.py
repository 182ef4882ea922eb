"""(A (x) G + damping I)^-1 g without building the Kronecker product: the exact damping."""

from __future__ import annotations

import numpy as np


def solve_in_the_eigenbasis(
    gradient: np.ndarray, a: np.ndarray, g: np.ndarray, damping: float
) -> np.ndarray:
    """``Q_g ((Q_g^T gradient Q_a) / (l_g l_a + damping)) Q_a^T``; gradient (O, I), float64."""
    a_values, a_vectors = np.linalg.eigh(a)
    g_values, g_vectors = np.linalg.eigh(g)
    turned = g_vectors.T @ gradient @ a_vectors
    turned /= np.outer(np.maximum(g_values, 0), np.maximum(a_values, 0)) + damping
    return g_vectors @ turned @ a_vectors.T
