"""Packed symmetric blocks, and inversions sharded across workers."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor

from multigrain.model.multigrain import build_model
from multigrain.optim.reduce import Reducer
from multigrain.optim.thor.blocks import BlockLayout, pack_symmetric, packed_size, unpack_symmetric
from multigrain.optim.thor.capture import attach_taps
from multigrain.optim.thor.inverse import (
    Inversion,
    assign_longest_first,
    damped_inverse,
    sharded_inverses,
)
from multigrain.specs.training import ModelSpec

pytestmark = pytest.mark.mindspore


@pytest.mark.parametrize("size", [1, 2, 7])
def test_packing_and_unpacking_is_lossless(size: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, size, size)).astype(np.float32)
    blocks = x + x.transpose(0, 2, 1)
    packed = pack_symmetric(blocks)
    assert packed.shape == (3, packed_size(size)) == (3, size * (size + 1) // 2)
    np.testing.assert_array_equal(unpack_symmetric(packed, size), blocks)


def test_unpacking_gives_symmetric_blocks() -> None:
    x = np.random.default_rng(0).standard_normal((1, 5, 5)).astype(np.float32)
    found = unpack_symmetric(pack_symmetric(x), 5)
    np.testing.assert_array_equal(found, found.transpose(0, 2, 1))
    np.testing.assert_array_equal(np.triu(found[0]), np.triu(x[0]))


def resnet50_layouts() -> list[BlockLayout]:
    layers = attach_taps(build_model(ModelSpec(trunk="resnet50"), 1000), block_size=128)
    return [layout for x in layers for layout in (x.a, x.g)]


def test_resnet50_inversions_are_balanced_and_packing_halves_the_payload() -> None:
    layouts = resnet50_layouts()
    costs = [x.valid(block) ** 3 for x in layouts for block in range(x.count)]
    assert len(costs) == 653
    for workers in (1, 2, 3, 8):
        owners = assign_longest_first(costs, workers)
        loads = [
            sum(c for c, o in zip(costs, owners, strict=True) if o == r) for r in range(workers)
        ]
        assert max(loads) <= 1.02 * sum(costs) / workers
    whole = sum(x.count * x.size**2 for x in layouts)
    sent = sum(x.count * packed_size(x.size) for x in layouts)
    assert 4 * whole / 2**20 == pytest.approx(40, abs=1)  # MiB
    assert sent / whole == pytest.approx(0.504, abs=0.001)


def test_the_longest_job_is_assigned_first_to_the_least_loaded_worker() -> None:
    assert assign_longest_first([1, 5, 3, 3], 2) == [0, 0, 1, 1]
    assert assign_longest_first([2, 2, 2], 2) == [0, 1, 0]
    assert assign_longest_first([], 3) == []


class OneOf(Reducer):
    """Rank ``rank`` of several; all-gathers return what the ranks gave before."""

    def __init__(self, rank: int, world: int, given: dict[int, np.ndarray]) -> None:
        super().__init__(1)
        self.rank, self.world, self.given = rank, world, given

    def gather(self, x: Tensor) -> Tensor:
        self.given[self.rank] = x.asnumpy()
        parts = [self.given.get(r, np.zeros_like(x.asnumpy())) for r in range(self.world)]
        return Tensor(np.concatenate(parts))


def every_rank(jobs: list[Inversion], world: int) -> list[list[np.ndarray | None]]:
    given: dict[int, np.ndarray] = {}
    for rank in range(world):
        sharded_inverses(jobs, OneOf(rank, world, given))
    return [sharded_inverses(jobs, OneOf(rank, world, given)) for rank in range(world)]


def jobs_of(dims: list[int]) -> list[Inversion]:
    jobs = []
    for seed, dim in enumerate(dims):
        layout = BlockLayout.of(dim, 4)
        x = np.random.default_rng(seed).standard_normal((layout.count, layout.size, 20))
        x[-1, layout.valid(layout.count - 1) :] = 0
        blocks = (x @ x.transpose(0, 2, 1) / 20).astype(np.float32)
        jobs.append(Inversion(blocks, 0.1 * (seed + 1), layout))
    return jobs


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_inverses_are_identical_on_any_number_of_workers(world: int) -> None:
    jobs = jobs_of([13, 4, 3, 9])
    expected = [damped_inverse(job.blocks, job.damping, job.layout) for job in jobs]
    for found in every_rank(jobs, world):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_without_jobs_nothing_is_inverted() -> None:
    assert every_rank([], 2) == [[], []]


def test_an_inversion_that_fails_on_one_worker_fails_on_all() -> None:
    jobs = jobs_of([13, 4])
    jobs[0].blocks[2, 1, 2] = np.nan
    for found in every_rank(jobs, 2):
        assert found[0] is None
        assert found[1] is not None
