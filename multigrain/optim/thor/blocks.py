"""The Kronecker factors of a layer as stacks of diagonal blocks: layout, packing, damping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class BlockLayout:
    """How a factor of ``dim`` rows is split into ``count`` diagonal blocks of ``size`` rows.

    The last block is padded. A dimension smaller than the block size is one block of its own
    size.
    """

    dim: int
    size: int
    count: int

    @classmethod
    def of(cls, dim: int, block_size: int) -> BlockLayout:
        """Returns the layout of ``dim`` rows in blocks of at most ``block_size``."""
        size = min(dim, block_size)
        return cls(dim, size, -(-dim // size))

    @property
    def padded(self) -> int:
        """Number of rows, padding included."""
        return self.size * self.count

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a stack of blocks: (count, size, size)."""
        return self.count, self.size, self.size

    def valid(self, block: int) -> int:
        """Returns the number of rows of a block without padding."""
        return min(self.size, self.dim - block * self.size)

    def identities(self) -> np.ndarray:
        """Returns identity blocks, float32, of ``shape``."""
        return np.tile(np.eye(self.size, dtype=np.float32), (self.count, 1, 1))


# Packed upper triangles nearly halve the payload of the collectives.


def packed_size(size: int) -> int:
    """Returns the number of elements of the upper triangle of a (size, size) matrix."""
    return size * (size + 1) // 2


def pack_symmetric(blocks: np.ndarray) -> np.ndarray:
    """Packs the upper triangles of (n, size, size) symmetric blocks, row by row.

    Returns:
        (n, size * (size + 1) / 2).
    """
    count, size, _ = blocks.shape
    return np.take(blocks.reshape(count, -1), _upper_indices(size), axis=1)


def unpack_symmetric(packed: np.ndarray, size: int) -> np.ndarray:
    """Reverses :func:`pack_symmetric`; the result is exactly symmetric."""
    mirrored = np.take(packed, _mirror_indices(size), axis=1)
    return mirrored.reshape(len(packed), size, size)


@lru_cache(maxsize=64)
def _upper_indices(size: int) -> np.ndarray:
    """Indices of the upper triangle's elements in the flattened matrix."""
    return np.flatnonzero(np.triu(np.ones((size, size), bool)))


@lru_cache(maxsize=64)
def _mirror_indices(size: int) -> np.ndarray:
    """Index of each element of the flattened matrix in the packed triangle."""
    positions = np.zeros((size, size), np.int64)
    rows, columns = np.triu_indices(size)
    positions[rows, columns] = positions[columns, rows] = np.arange(packed_size(size))
    return positions.ravel()


@dataclass(frozen=True)
class KroneckerFactors:
    """The two factors of one layer in host memory.

    Attributes:
        a: diagonal blocks of sqrt(T) A, (count, size, size) float32.
        g: diagonal blocks of sqrt(T) G, likewise.
    """

    a: np.ndarray
    g: np.ndarray

    @property
    def trace(self) -> float:
        """Trace of the layer's Fisher matrix, T tr(A) tr(G).

        Splitting a factor into diagonal blocks does not change its trace; padding is 0.
        """
        return trace(self.a) * trace(self.g)


def trace(blocks: np.ndarray) -> float:
    """Returns the sum of the diagonals of all blocks, computed in float64."""
    return float(np.einsum("kii->", blocks, dtype=np.float64))


def split_damping(
    factors: KroneckerFactors, dims: tuple[int, int], damping: float, *, pi_correction: bool
) -> tuple[float, float]:
    """Splits the damping into those added to the diagonals of sqrt(T) A and sqrt(T) G.

    Without pi correction, as in THOR, both are ``sqrt(damping)``. With it (K-FAC, arXiv
    1503.05671, section 6.3) A gets ``pi sqrt(damping)`` and G ``sqrt(damping) / pi``, where

        pi^2 = (tr(A) / dim(A)) / (tr(G) / dim(G))

    Args:
        factors: the layer's factors.
        dims: dim(A) and dim(G).
        damping: lambda.
        pi_correction: whether to apply it.

    Returns:
        The damping of A and that of G; their product is ``damping``.
    """
    root = math.sqrt(damping)
    if not pi_correction:
        return root, root
    a, g = trace(factors.a) / dims[0], trace(factors.g) / dims[1]
    # Without a ratio if a factor is zero or non-finite (which is detected later).
    pi = math.sqrt(a / g) if a > 0 and g > 0 else 1.0
    if not (math.isfinite(pi) and pi > 0):
        pi = 1.0
    return pi * root, root / pi
