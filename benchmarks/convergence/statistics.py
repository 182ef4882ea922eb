"""BatchNorm's statistics of given images under the present weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from multigrain.model.parameters import assign


@contextmanager
def statistics_of(model: nn.Cell, images: NDArray[np.float32]) -> Iterator[None]:
    """Inside, BatchNorm evaluates with the statistics of these images; after it as before.

    Running values are means over the steps before, whose weights were other ones.

    Args:
        images: (N, 3, H, W); they go through the network as one batch.
    """
    layers = [cell for _, cell in model.cells_and_names() if isinstance(cell, nn.BatchNorm2d)]
    values = [(x.momentum, p) for x in layers for p in (x.moving_mean, x.moving_variance)]
    before = [parameter.asnumpy().copy() for _, parameter in values]
    for _, parameter in values:
        assign(parameter, np.zeros(parameter.shape, np.float32))
    model.set_train(True)
    model(Tensor(images))
    for momentum, parameter in values:
        # running = (1 - momentum) * 0 + momentum * batch: the layer keeps 1 - what it was given.
        assign(parameter, parameter.asnumpy() / momentum)
    try:
        yield
    finally:
        for (_, parameter), value in zip(values, before, strict=True):
            assign(parameter, value)
