"""Damped inverses of factor blocks on the host, sharded across the workers.

No batched inverse of MindSpore runs on Ascend, GPU and CPU alike, and a refresh is rare:
LAPACK is used on all of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from multigrain.optim.reduce import Reducer, host_gather
from multigrain.optim.thor.blocks import BlockLayout, pack_symmetric, packed_size, unpack_symmetric


def damped_inverse(blocks: np.ndarray, damping: float, layout: BlockLayout) -> np.ndarray | None:
    """Computes (F + damping I)^-1 of each symmetric block, with the identity as padding.

    Args:
        blocks: (count, size, size) float32; only the upper triangles are read.
        damping: > 0; sqrt(lambda) of THOR.
        layout: of the blocks.

    Returns:
        The same shape, float32, symmetric; None if an inverse is non-finite.
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
    """Computes (F + damping I)^-1 of one symmetric block.

    By a Cholesky factorization in float32, or if that fails by an eigendecomposition in float64
    with negative eigenvalues clipped to 0.

    Args:
        block: (size, size) float32; only the upper triangle is read.
        damping: > 0.

    Returns:
        The same shape, float32, symmetric; None if the block or its inverse is non-finite.
    """
    if not np.isfinite(damping) or damping <= 0 or not np.isfinite(block).all():
        return None
    inverse = _cholesky_inverse(block, damping)
    if inverse is None:
        inverse = _eigen_inverse(block.astype(np.float64), damping)
    return inverse if inverse is not None and np.isfinite(inverse).all() else None


def _cholesky_inverse(block: np.ndarray, damping: float) -> np.ndarray | None:
    # LAPACK is column-major: its lower triangle is our upper one, without a copy.
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
    """Returns the symmetric matrix with that upper triangle."""
    return np.triu(upper) + np.triu(upper, 1).T


def assign_longest_first(costs: Sequence[int], workers: int) -> list[int]:
    """Assigns jobs to workers by longest processing time first (LPT scheduling).

    Each job goes to the worker with the least load so far. No worker gets more than the mean
    load plus one job.

    Returns:
        The worker of each job.
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
    """Arguments of :func:`damped_inverse`."""

    blocks: np.ndarray
    damping: float
    layout: BlockLayout


def sharded_inverses(jobs: Sequence[Inversion], reducer: Reducer) -> list[np.ndarray | None]:
    """Computes :func:`damped_inverse` of each job, sharded across the workers. Collective.

    Every worker must give the same jobs. Each block is inverted by one worker, which sends the
    packed upper triangle to the others. Besides dividing the work, this keeps the weights of all
    workers identical: inverses computed on different processors differ in the last bits.
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
        lengths[owner] += packed_size(side)
    own = np.zeros(max(lengths), np.float32)
    start = 0
    for (job, index), side, owner in zip(blocks, sides, owners, strict=True):
        if owner != reducer.rank:
            continue
        inverse = invert_block(job.blocks[index, :side, :side], job.damping)
        end = start + packed_size(side)
        own[start:end] = np.nan if inverse is None else pack_symmetric(inverse[None])[0]
        start = end
    return _assemble(jobs, owners, host_gather(reducer, own))


def _assemble(
    jobs: Sequence[Inversion], owners: Sequence[int], shards: Sequence[np.ndarray]
) -> list[np.ndarray | None]:
    """Puts the workers' packed inverses together, in the order of the jobs."""
    starts = [0] * len(shards)
    owner = iter(owners)
    result: list[np.ndarray | None] = []
    for job in jobs:
        stack = job.layout.identities()
        for index in range(job.layout.count):
            side, worker = job.layout.valid(index), next(owner)
            end = starts[worker] + packed_size(side)
            packed = shards[worker][None, starts[worker] : end]
            stack[index, :side, :side] = unpack_symmetric(packed, side)[0]
            starts[worker] = end
        result.append(stack if np.isfinite(stack).all() else None)
    return result
