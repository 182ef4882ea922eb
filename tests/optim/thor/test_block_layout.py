"""Block layouts of real layers, in blocks of 128."""

from __future__ import annotations

import numpy as np
import pytest

from multigrain.optim.thor.blocks import BlockLayout


@pytest.mark.parametrize(
    ("dim", "rows"),
    [
        (64, [64]),
        (128, [128]),
        (147, [128, 19]),  # the first convolution's 7x7 patches of 3 channels
        (576, [128] * 4 + [64]),
        (1000, [128] * 7 + [104]),  # ImageNet's classes
        (4608, [128] * 36),
    ],
)
def test_the_last_block_has_the_remaining_rows(dim: int, rows: list[int]) -> None:
    layout = BlockLayout.of(dim, 128)
    assert [layout.valid(block) for block in range(layout.count)] == rows
    assert sum(rows) == dim <= layout.padded == layout.count * layout.size
    assert layout.shape == (len(rows), max(rows), max(rows))


@pytest.mark.parametrize("size", [147, 128 * 2, 4096])
def test_a_large_block_size_is_one_block(size: int) -> None:
    layout = BlockLayout.of(147, size)
    assert layout.shape == (1, 147, 147)
    np.testing.assert_array_equal(layout.identities(), np.eye(147, dtype=np.float32)[None])
