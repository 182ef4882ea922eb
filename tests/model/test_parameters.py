"""Assigned values reach compiled graphs."""

from __future__ import annotations

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from multigrain.model.parameters import assign

pytestmark = pytest.mark.mindspore


class Scale(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.factor = Parameter(Tensor(np.ones(2, np.float32)), name="factor")
        self.scalar = Parameter(Tensor(1.0, mindspore.float32), name="scalar")

    def construct(self, x: Tensor) -> Tensor:
        return x * self.factor * self.scalar


def test_compiled_graphs_read_and_write_the_assigned_values() -> None:
    net = Scale()

    @mindspore.jit
    def run(x: Tensor) -> Tensor:
        return net(x)

    @mindspore.jit
    def subtract(x: Tensor) -> Tensor:
        ops.assign(net.factor, net.factor - x)
        return x

    x = Tensor(np.ones(2, np.float32))
    assert run(x).asnumpy().tolist() == [1, 1]
    subtract(Tensor(np.zeros(2, np.float32)))
    assign(net.factor, np.array([5.0, 6.0]))
    assign(net.scalar, np.asarray(2.0))
    assert net.scalar.shape == ()
    assert run(x).asnumpy().tolist() == [10, 12]
    subtract(x)
    assert run(x).asnumpy().tolist() == [8, 10]
    assert net.factor.asnumpy().tolist() == [4, 5]
