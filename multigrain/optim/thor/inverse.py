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

    Args:
        blocks: (count, size, size) float32; only the upper triangles are read.
        damping: > 0; sqrt(lambda) of THOR.
    Returns:
        The same shape, float32, symmetric; or None when an inverse is not finite.
    """
    if blocks.shape != layout.shape:
        raise ValueError(f"blocks of {blocks.shape}, expected {layout.shape}")
    inverses = layout.identities()
    for index in range(layout.count):
        valid = layout.valid(index)
        inverse = invert_block(blocks[index, :valid, :valid], damping)
        if inverse is None:
            return None
        inverses[index, :valid, :valid] = inverse
    return inverses


def invert_block(block: np.ndarray, damping: float) -> np.ndarray | None:
    """(F + damping I)^-1 of one symmetric block, of which only the upper triangle is read.

    Cholesky in float32; where that fails, eigenvalues in float64, those below 0 taken for 0.

    Args:
        block: (size, size) float32.
        damping: > 0.
    Returns:
        The same shape, float32, symmetric; None when the block, or the inverse, is not finite.
    """
    if not np.isfinite(damping) or damping <= 0 or not np.isfinite(block).all():
        return None
    inverse = _cholesky_inverse(block, damping)
    if inverse is None:
        inverse = _eigen_inverse(block.astype(np.float64), damping)
    return inverse if inverse is not None and np.isfinite(inverse).all() else None


def _cholesky_inverse(block: np.ndarray, damping: float) -> np.ndarray | None:
    # LAPACK's columns are our rows: its lower triangle is our upper one, without a copy.
    damped = block.T.copy(order="F")
    damped[np.diag_indices_from(damped)] += np.float32(damping)
    lower, failed = lapack.spotrf(damped, lower=1, clean=0, overwrite_a=1)
    if failed:
        return None
    inverse, failed = lapack.spotri(lower, lower=1, overwrite_c=1)
    if failed:
        return None
    return _mirrored(inverse.T)


def _eigen_inverse(block: np.ndarray, damping: float) -> np.ndarray | None:
    try:
        values, vectors = np.linalg.eigh(block, UPLO="U")
    except np.linalg.LinAlgError:
        return None
    # Rounding can make the small eigenvalues of a factor negative, by more than the damping.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        inverse = (vectors / (np.maximum(values, 0.0) + damping)) @ vectors.T
        return _mirrored(inverse.astype(np.float32))


def _mirrored(upper: np.ndarray) -> np.ndarray:
    """The symmetric matrix with that upper triangle."""
    return np.triu(upper) + np.triu(upper, 1).T
