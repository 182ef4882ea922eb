"""Collectives over the workers of a job: all-reduce and all-gather in few large messages."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops.auto_generate import SplitWithSize

# Elements per message: 16 MiB of float32, where the TCP collectives on CPUs are fastest.
BUCKET_ELEMENTS = 4 * 2**20


class Reducer(nn.Cell):
    """All-reduce over ``world`` workers; the identity with one worker.

    With more than one worker, ``mindspore.communication.init()`` must have been called.
    """

    def __init__(self, world: int) -> None:
        super().__init__()
        self.world = world
        self.rank = 0
        if world > 1:
            from mindspore.communication import get_rank  # only where a cluster exists

            self.rank = get_rank()
            self.all_reduce = ops.AllReduce()
            self.all_gather = ops.AllGather()

    def construct(self, x: Tensor) -> Tensor:
        """Returns the sum of a float32 tensor over the workers."""
        if self.world == 1:
            return x
        return self.all_reduce(x)

    def sum(self, x: Tensor) -> Tensor:
        """Returns the sum over the workers; for use outside a graph."""
        return self(x)

    def gather(self, x: Tensor) -> Tensor:
        """All-gathers (n,) of each worker, the same n, to (world * n,); for use outside a graph."""
        return self.all_gather(x)


class BucketedMean(nn.Cell):
    """Mean over the workers of a fixed list of float32 tensors, in buckets of 16 MiB.

    The tensors of a bucket are concatenated, reduced in one message and split again.

    Args:
        reducer: the all-reduce.
        shapes: shapes of the tensors.
    """

    def __init__(self, reducer: Reducer, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.reducer = reducer
        self.sizes = tuple(_size(s) for s in shapes)
        self.buckets = tuple(_buckets(self.sizes))
        self.concatenate = ops.Concat(0)
        # The primitive: ops.split, which only wraps it, takes fifteen seconds longer to compile for
        # the parameters of a ResNet-18.
        self.split = SplitWithSize()
        self.each = ops.HyperMap()

    def construct(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        flat = self.each(_flatten, tensors)
        pieces = ()
        for first, last in self.buckets:
            reduced = self.reducer(self.concatenate(flat[first:last])) / self.reducer.world
            pieces = pieces + self.split(reduced, self.sizes[first:last])
        return self.each(_shape_like, pieces, tensors)


def host_mean(reducer: Reducer, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the mean over the workers of float32 arrays in host memory. Collective.

    Uses the buckets of :class:`BucketedMean`. Every worker must give arrays of the same shapes in
    the same order. The lists may differ from call to call, because nothing is compiled.
    """
    if reducer.world == 1:
        return list(arrays)
    means: list[np.ndarray] = []
    for first, last in _buckets([x.size for x in arrays]):
        bucket = arrays[first:last]
        flat = np.concatenate([x.ravel() for x in bucket])
        reduced = reducer.sum(Tensor(flat)).asnumpy() / np.float32(reducer.world)
        start = 0
        for x in bucket:
            means.append(reduced[start : start + x.size].reshape(x.shape))
            start += x.size
    return means


def host_gather(reducer: Reducer, own: np.ndarray) -> list[np.ndarray]:
    """Returns every worker's (n,) float32 array in the order of ranks. Collective.

    ``n`` must be the same on all workers.
    """
    parts = [
        reducer.gather(Tensor(own[start : start + BUCKET_ELEMENTS])).asnumpy()
        for start in range(0, len(own), BUCKET_ELEMENTS)
    ]
    return [
        np.concatenate([part.reshape(reducer.world, -1)[rank] for part in parts])
        for rank in range(reducer.world)
    ]


_flatten = ops.MultitypeFuncGraph("flatten")
_shape_like = ops.MultitypeFuncGraph("shape_like")


@_flatten.register("Tensor")
def _flatten_one(x):  # type: ignore[no-untyped-def]
    return ops.reshape(ops.cast(x, mindspore.float32), (-1,))


@_shape_like.register("Tensor", "Tensor")
def _shape_one_like(x, model):  # type: ignore[no-untyped-def]
    return ops.reshape(x, model.shape)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _buckets(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges [first, last) of consecutive tensors; one that exceeds a bucket has its own."""
    buckets = []
    first, filled = 0, 0
    for index, size in enumerate(sizes):
        if index > first and filled + size > BUCKET_ELEMENTS:
            buckets.append((first, index))
            first, filled = index, 0
        filled += size
    if len(sizes) > first:
        buckets.append((first, len(sizes)))
    return buckets
