"""Damped inverses of factor blocks, on the host.

No single batched inverse of MindSpore runs on Ascend, GPU and CPU alike, and a refresh is
rare, so this one function does it with LAPACK everywhere.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from multigrain.optim.reduce import Reducer, host_gather
from multigrain.optim.thor.blocks import BlockLayout, pack, triangle, unpack


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


# MERGED: Divides the inversions among the workers, so that all hold the same bits.


def assign_longest_first(costs: Sequence[int], workers: int) -> list[int]:
    """The worker of each job: the longest job first, each to whoever has least to do so far.

    No worker has more than the mean and one job on top of it.
    """
    loads = [(0, worker) for worker in range(workers)]  # a heap; ties go to the lowest rank
    owners = [0] * len(costs)
    for job in sorted(range(len(costs)), key=lambda job: (-costs[job], job)):
        load, worker = heapq.heappop(loads)
        owners[job] = worker
        heapq.heappush(loads, (load + costs[job], worker))
    return owners


@dataclass(frozen=True)
class Inversion:
    """A stack of blocks to be inverted; see ``damped_inverse``."""

    blocks: np.ndarray
    damping: float
    layout: BlockLayout


def sharded_inverses(jobs: Sequence[Inversion], reducer: Reducer) -> list[np.ndarray | None]:
    """``damped_inverse`` of each job; every worker must give the same jobs.

    Each block is inverted by one worker, which sends the upper triangle to the others. Besides
    dividing the work this keeps the weights of all workers identical: the same matrix inverted
    on two kinds of processor differs in its last bits.
    """
    if not jobs:
        return []
    if reducer.world == 1:
        return [damped_inverse(job.blocks, job.damping, job.layout) for job in jobs]
    blocks = [(job, index) for job in jobs for index in range(job.layout.count)]
    sides = [job.layout.valid(index) for job, index in blocks]
    owners = assign_longest_first([side**3 for side in sides], reducer.world)
    lengths = [0] * reducer.world
    for side, owner in zip(sides, owners, strict=True):
        lengths[owner] += triangle(side)
    own = np.zeros(max(lengths), np.float32)
    start = 0
    for (job, index), side, owner in zip(blocks, sides, owners, strict=True):
        if owner != reducer.rank:
            continue
        inverse = invert_block(job.blocks[index, :side, :side], job.damping)
        end = start + triangle(side)
        own[start:end] = np.nan if inverse is None else pack(inverse[None])[0]
        start = end
    return _assemble(jobs, owners, host_gather(reducer, own))


def _assemble(
    jobs: Sequence[Inversion], owners: Sequence[int], shares: Sequence[np.ndarray]
) -> list[np.ndarray | None]:
    starts = [0] * len(shares)
    owner = iter(owners)
    result: list[np.ndarray | None] = []
    for job in jobs:
        stack = job.layout.identities()
        for index in range(job.layout.count):
            side, worker = job.layout.valid(index), next(owner)
            end = starts[worker] + triangle(side)
            stack[index, :side, :side] = unpack(shares[worker][None, starts[worker] : end], side)[0]
            starts[worker] = end
        result.append(stack if np.isfinite(stack).all() else None)
    return result
