"""Checks the MindSpore installation with a convolution: ``python -m multigrain.probe``.

Computes a convolution and its gradient. The result shows whether MindSpore works on this CPU, the
time whether the wheel has fast kernels (without them it is about a hundred times slower). Prints
one line of JSON.
"""

from __future__ import annotations

import json
import time

from multigrain.kernels import limit_instructions

LIMITED = limit_instructions()

# ruff: noqa: E402 - MindSpore reads the limit when it is imported
import mindspore as ms
import numpy as np
from mindspore import nn

CHANNELS, KERNEL, REPEATS = 64, 3, 5


def measure() -> dict[str, object]:
    """Runs the check.

    Returns:
        ``version`` of MindSpore; ``gradient`` of the sum of all outputs with respect to an inner
        pixel, with all weights 1; its ``expected`` value; ``seconds`` of one pass; ``limited``: see
        :func:`multigrain.kernels.limit_instructions`.
    """
    ms.set_context(mode=ms.GRAPH_MODE)
    net = nn.Conv2d(CHANNELS, CHANNELS, KERNEL, weight_init="ones")

    def forward(x: ms.Tensor) -> ms.Tensor:
        return net(x).sum()

    step = ms.jit(ms.grad(forward))
    x = ms.Tensor(np.ones((8, CHANNELS, 32, 32), np.float32))
    inner = float(step(x).asnumpy()[0, 0, 16, 16])
    begun = time.perf_counter()
    for _ in range(REPEATS):
        step(x).asnumpy()
    return {
        "version": ms.__version__,
        "limited": LIMITED,
        "gradient": inner,
        # Every output channel depends on the pixel through each weight of its kernel.
        "expected": float(CHANNELS * KERNEL * KERNEL),
        "seconds": (time.perf_counter() - begun) / REPEATS,
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
