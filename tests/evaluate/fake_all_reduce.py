"""Several workers in one process: each runs in a thread, sums meet at a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from multigrain.evaluate.all_reduce import AllReduce

T = TypeVar("T")


class _ThreadAllReduce(AllReduce):
    def __init__(self, barrier: threading.Barrier, slots: list[NDArray[np.float32]], rank: int):
        super().__init__(1)
        self._barrier, self._slots, self._rank = barrier, slots, rank

    def sum(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        self._slots[self._rank] = array.copy()
        self._barrier.wait(30)
        total = np.sum(self._slots, axis=0, dtype=np.float32)
        self._barrier.wait(30)
        return total


def on_workers(world: int, work: Callable[[int, AllReduce], T]) -> list[T]:
    """``work(rank, all_reduce)`` on every rank at once."""
    barrier = threading.Barrier(world)
    slots: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * world
    with ThreadPoolExecutor(world) as pool:
        futures = [
            pool.submit(work, rank, _ThreadAllReduce(barrier, slots, rank)) for rank in range(world)
        ]
        return [future.result(60) for future in futures]
