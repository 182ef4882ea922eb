"""BatchNorm statistics of given images under the current weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from multigrain.model.parameters import assign


@contextmanager
def statistics_of(model: nn.Cell, images: NDArray[np.float32]) -> Iterator[None]:
    """Within the context, BatchNorm evaluates with the statistics of these images.

    Running statistics are averages over earlier steps with other weights.

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
        # running = (1 - momentum) * 0 + momentum * batch; the layer stores 1 - the given momentum.
        assign(parameter, parameter.asnumpy() / momentum)
    try:
        yield
    finally:
        for (_, parameter), value in zip(values, before, strict=True):
            assign(parameter, value)
