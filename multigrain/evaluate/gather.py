"""Results of all workers, put together on each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CHUNK = 16 * 2**20  # elements of one message: 64 MiB


class Gather:
    """Sums arrays over the workers of a job; with one worker, nothing is done.

    Every worker must make the same calls with the same shapes. MindSpore's communication
    must be initialised when ``world`` is greater than 1.
    """

    def __init__(self, world: int) -> None:
        self._world = world

    def sum(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sum over the workers, of the same shape. Whole numbers are exact up to 2^24."""
        if self._world == 1:
            return array
        from mindspore import Tensor, ops

        reduce = ops.AllReduce()
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
        parts = [
            reduce(Tensor(flat[start : start + _CHUNK])).asnumpy()
            for start in range(0, flat.size, _CHUNK)
        ]
        result: NDArray[np.float32] = np.concatenate(parts).reshape(array.shape)
        return result

    def any(self, mine: bool) -> bool:
        """Whether it is true on any worker."""
        return bool(self.sum(np.array([float(mine)], np.float32))[0] > 0)
