"""Damped inverses of factor blocks, on the host.

No single batched inverse of MindSpore runs on Ascend, GPU and CPU alike, and a refresh is
rare, so this one function does it with LAPACK everywhere.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from multigrain.optim.thor.layout import BlockLayout


def damped_inverse(blocks: np.ndarray, damping: float, layout: BlockLayout) -> np.ndarray | None:
    """(F + damping I)^-1 for each symmetric block; the identity where a block is padding.

    Cholesky in float32; where that fails, eigenvalues in float64, those below 0 taken for 0.
    The padding of the last block never enters a factorisation.

    Args:
        blocks: (count, size, size) float32.
        damping: > 0; sqrt(lambda) of THOR.
    Returns:
        The same shape, float32, symmetric; or None when an inverse is not finite.
    """
    if blocks.shape != layout.shape:
        raise ValueError(f"blocks of {blocks.shape}, expected {layout.shape}")
    if not np.isfinite(blocks).all() or not np.isfinite(damping) or damping <= 0:
        return None
    inverses = np.zeros(layout.shape, np.float32)
    inverses[:, np.arange(layout.size), np.arange(layout.size)] = 1.0
    for index in range(layout.count):
        valid = layout.valid(index)
        inverse = _invert(blocks[index, :valid, :valid], damping)
        if inverse is None:
            return None
        inverses[index, :valid, :valid] = inverse
    return inverses


def _invert(block: np.ndarray, damping: float) -> np.ndarray | None:
    # The product of a matrix with its transpose is symmetric only up to rounding.
    symmetric = (block + block.T) / np.float32(2)
    inverse = _cholesky_inverse(symmetric, damping)
    if inverse is None:
        inverse = _eigen_inverse(symmetric.astype(np.float64), damping)
    return inverse if inverse is not None and np.isfinite(inverse).all() else None


def _cholesky_inverse(block: np.ndarray, damping: float) -> np.ndarray | None:
    damped = block.copy()
    damped[np.diag_indices_from(damped)] += np.float32(damping)
    lower, failed = lapack.spotrf(damped, lower=1)
    if failed:
        return None
    inverse, failed = lapack.spotri(lower, lower=1)
    if failed or not np.isfinite(inverse).all():
        return None
    return np.tril(inverse) + np.tril(inverse, -1).T


def _eigen_inverse(block: np.ndarray, damping: float) -> np.ndarray | None:
    try:
        values, vectors = np.linalg.eigh(block)
    except np.linalg.LinAlgError:
        return None
    # Rounding can make the small eigenvalues of a factor negative, by more than the damping.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        inverse = (vectors / (np.maximum(values, 0.0) + damping)) @ vectors.T
        return ((inverse + inverse.T) / 2).astype(np.float32)
