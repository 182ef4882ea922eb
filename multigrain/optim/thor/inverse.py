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

    Cholesky in float32, and in float64 where that fails. The padding of the last block never
    enters a factorisation.

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
    for dtype, factorise, invert in (
        (np.float32, lapack.spotrf, lapack.spotri),
        (np.float64, lapack.dpotrf, lapack.dpotri),
    ):
        damped = block.astype(dtype)
        # The product of a matrix with its transpose is symmetric only up to rounding.
        damped = (damped + damped.T) / dtype(2)
        damped[np.diag_indices_from(damped)] += dtype(damping)
        lower, failed = factorise(damped, lower=1)
        if failed:
            continue
        inverse, failed = invert(lower, lower=1)
        if failed:
            continue
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        inverse = inverse.astype(np.float32)
        if np.isfinite(inverse).all():
            return inverse
    return None
