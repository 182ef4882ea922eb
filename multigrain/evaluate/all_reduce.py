"""All-reduce of host arrays over the workers of a job."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MESSAGE_ELEMENTS = 16 * 2**20  # largest message: 64 MiB of float32


class AllReduce:
    """Sums arrays over the workers of a job. With one worker it returns its input.

    Collective: every worker must make the same calls with the same shapes. With more than one
    worker, ``mindspore.communication`` must have been initialized.

    Args:
        world: number of workers.
    """

    def __init__(self, world: int) -> None:
        self._world = world

    def sum(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the sum over the workers, in the shape of ``array``.

        Integers are exact up to 2**24.
        """
        if self._world == 1:
            return array
        from mindspore import Tensor, ops

        reduce = ops.AllReduce()
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
        parts = [
            reduce(Tensor(flat[start : start + _MESSAGE_ELEMENTS])).asnumpy()
            for start in range(0, flat.size, _MESSAGE_ELEMENTS)
        ]
        result: NDArray[np.float32] = np.concatenate(parts).reshape(array.shape)
        return result

    def any(self, value: bool) -> bool:
        """Returns whether ``value`` is true on any worker."""
        return bool(self.sum(np.array([float(value)], np.float32))[0] > 0)
