"""How one dimension of a weight matrix is cut in diagonal blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class BlockLayout:
    """A dimension of ``dim`` rows cut in ``count`` blocks of ``size``, the last one padded.

    A dimension that is smaller than the block size is one block of its own size.
    """

    dim: int
    size: int
    count: int

    @classmethod
    def of(cls, dim: int, block_size: int) -> BlockLayout:
        """The layout of ``dim`` rows in blocks of at most ``block_size``."""
        size = min(dim, block_size)
        return cls(dim, size, -(-dim // size))

    @property
    def padded(self) -> int:
        """Rows with the padding."""
        return self.size * self.count

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a stack of blocks: (count, size, size)."""
        return self.count, self.size, self.size

    def valid(self, block: int) -> int:
        """Rows of that block which are not padding."""
        return min(self.size, self.dim - block * self.size)

    def identities(self) -> np.ndarray:
        """A stack of identity blocks, float32, shape ``shape``."""
        return np.tile(np.eye(self.size, dtype=np.float32), (self.count, 1, 1))


# MERGED: Symmetric blocks as their upper triangles: hardly more than half of what has to
# travel.


def triangle(size: int) -> int:
    """Numbers of the upper triangle of a (size, size) matrix, its diagonal included."""
    return size * (size + 1) // 2


def pack(blocks: np.ndarray) -> np.ndarray:
    """(n, size, size) symmetric blocks -> (n, size (size + 1) / 2), row by row."""
    count, size, _ = blocks.shape
    return np.take(blocks.reshape(count, -1), _upper(size), axis=1)


def unpack(triangles: np.ndarray, size: int) -> np.ndarray:
    """The inverse of :func:`pack`; what comes out is symmetric to the last bit."""
    mirrored = np.take(triangles, _mirror(size), axis=1)
    return mirrored.reshape(len(triangles), size, size)


@lru_cache(maxsize=64)
def _upper(size: int) -> np.ndarray:
    """Where the numbers of the triangle stand in the flattened matrix."""
    return np.flatnonzero(np.triu(np.ones((size, size), bool)))


@lru_cache(maxsize=64)
def _mirror(size: int) -> np.ndarray:
    """Where each number of the flattened matrix stands in the triangle."""
    positions = np.zeros((size, size), np.int64)
    rows, columns = np.triu_indices(size)
    positions[rows, columns] = positions[columns, rows] = np.arange(triangle(size))
    return positions.ravel()


# MERGED: The two Kronecker factors of one layer, on the host.


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
