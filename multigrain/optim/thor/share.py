"""Divides the inversions among the workers, so that all hold the same bits."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multigrain.optim.reduce import Reducer, host_gather
from multigrain.optim.thor.inverse import damped_inverse, invert_block
from multigrain.optim.thor.layout import BlockLayout
from multigrain.optim.thor.triangles import pack, triangle, unpack


def longest_first(costs: Sequence[int], workers: int) -> list[int]:
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


def shared_inverses(jobs: Sequence[Inversion], reducer: Reducer) -> list[np.ndarray | None]:
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
    owners = longest_first([side**3 for side in sides], reducer.world)
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
