"""Reductions over workers in several messages."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor

from multigrain.optim import reduce
from multigrain.optim.reduce import BucketedMean, Reducer, host_gather, host_mean

pytestmark = pytest.mark.mindspore

SHAPES = [(3,), (2, 2), (), (7,), (1, 3, 1), (2,)]


class Three(Reducer):
    """One of three workers: the others have twice and six times its values."""

    def __init__(self) -> None:
        super().__init__(1)
        self.world = 3
        self.messages: list[int] = []

    def construct(self, x: Tensor) -> Tensor:
        self.messages.append(x.size)
        return x + 2.0 * x + 6.0 * x

    def gather(self, x: Tensor) -> Tensor:
        values = x.asnumpy()
        self.messages.append(x.size)
        return Tensor(np.concatenate([values, 2 * values, 6 * values]))


@pytest.fixture(autouse=True)
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduce, "BUCKET_ELEMENTS", 5)


def tensors() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.standard_normal(shape), np.float32) for shape in SHAPES]


@pytest.mark.parametrize("where", ["device", "host"])
def test_bucketed_tensors_keep_their_order_and_shape(where: str) -> None:
    reducer, given = Three(), tensors()
    if where == "device":
        found = [x.asnumpy() for x in BucketedMean(reducer, SHAPES)(*(Tensor(x) for x in given))]
    else:
        found = host_mean(reducer, given)
    for mean, own in zip(found, given, strict=True):
        assert mean.shape == own.shape
        np.testing.assert_allclose(mean, 3 * own, rtol=1e-6)
    # No message is longer than a bucket, except for a single larger tensor.
    assert reducer.messages == [3, 5, 7, 5]


@pytest.mark.parametrize("size", [1, 5, 12])
def test_arrays_longer_than_a_message_are_gathered(size: int) -> None:
    own = np.arange(size, dtype=np.float32) + 1
    found = host_gather(Three(), own)
    for part, factor in zip(found, (1, 2, 6), strict=True):
        np.testing.assert_array_equal(part, factor * own)
