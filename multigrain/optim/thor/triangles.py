"""Symmetric blocks as their upper triangles: hardly more than half of what has to travel."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


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
