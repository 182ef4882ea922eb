"""Divides the inversions among the workers, so that all hold the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor

from multigrain.optim.reduce import Reducer


class InverseShare:
    """Worker r of R inverts factors r, r + R, r + 2R ...; then everyone gets all of them.

    Besides dividing the work this keeps the weights of all workers identical: the same matrix
    inverted on two kinds of processor differs in its last bits.
    """

    def __init__(self, reducer: Reducer) -> None:
        self._reducer = reducer

    @property
    def world(self) -> int:
        """Number of workers."""
        return self._reducer.world

    def mine(self, index: int) -> bool:
        """Whether this worker inverts factor ``index``."""
        return index % self._reducer.world == self._reducer.rank

    def exchange(
        self, found: Sequence[np.ndarray | None], shapes: Sequence[tuple[int, int, int]]
    ) -> list[np.ndarray | None]:
        """Fills in the other workers' inverses; None stays None where the inversion failed."""
        if self._reducer.world == 1:
            return list(found)
        parts = []
        for index, shape in enumerate(shapes):
            value = found[index]
            if not self.mine(index):
                parts.append(np.zeros(shape, np.float32).ravel())  # 0 + x is x, exactly
            elif value is None:
                parts.append(np.full(shape, np.nan, np.float32).ravel())
            else:
                parts.append(value.ravel())
        flat = self._reducer.sum(Tensor(np.concatenate(parts))).asnumpy()
        result: list[np.ndarray | None] = []
        start = 0
        for shape in shapes:
            size = int(np.prod(shape))
            block = flat[start : start + size].reshape(shape)
            result.append(block.copy() if np.isfinite(block).all() else None)
            start += size
        return result
