"""How one dimension of a weight matrix is cut in diagonal blocks."""

from __future__ import annotations

from dataclasses import dataclass

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
