"""Multiplies a gradient by the inverse factors of its layer, block by block."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from multigrain.model.state import CURVATURE_PREFIX
from multigrain.optim.thor.layout import BlockLayout


class LayerPreconditioner(nn.Cell):
    """P(g) = (sqrt(T) G + sqrt(lambda) I)^-1  g  (sqrt(T) A + sqrt(lambda) I)^-1, blockwise.

    With F = T (A (x) G) the layer's Fisher matrix this is ``(F + damping)^-1`` applied to g,
    damped on each side by sqrt(lambda / T) and without pi correction, as THOR does
    (MindSpore's THOR, K-FAC arXiv 1503.05671 section 6.3). Block (h, w) of the gradient is
    multiplied by block h of the one inverse and block w of the other.

    Until the first refresh the inverses are identities: the plain gradient.
    """

    def __init__(self, name: str, a: BlockLayout, g: BlockLayout) -> None:
        super().__init__()
        self.a_inverse = Parameter(
            Tensor(_identities(a)), name=f"{CURVATURE_PREFIX}{name}.a_inverse", requires_grad=False
        )
        self.g_inverse = Parameter(
            Tensor(_identities(g)), name=f"{CURVATURE_PREFIX}{name}.g_inverse", requires_grad=False
        )
        self.rows, self.columns = g.dim, a.dim
        self.padded_rows, self.padded_columns = g.padded, a.padded
        self.g_count, self.g_size = g.count, g.size
        self.a_count, self.a_size = a.count, a.size
        self.padded = g.padded > g.dim or a.padded > a.dim
        if self.padded:
            self.pad = ops.Pad(((0, g.padded - g.dim), (0, a.padded - a.dim)))
        self.multiply = ops.BatchMatMul()

    def construct(self, gradient: Tensor) -> Tensor:
        g = ops.reshape(gradient, (self.rows, self.columns))
        if self.padded:
            g = self.pad(g)
        g = ops.reshape(g, (self.g_count, self.g_size, self.padded_columns))
        g = self.multiply(self.g_inverse, g)
        if self.a_count == 1:
            g = ops.reshape(g, (1, self.padded_rows, self.a_size))
            g = self.multiply(g, self.a_inverse)
        else:
            g = ops.reshape(g, (self.padded_rows, self.a_count, self.a_size))
            g = self.multiply(ops.transpose(g, (1, 0, 2)), self.a_inverse)
            g = ops.transpose(g, (1, 0, 2))
        g = ops.reshape(g, (self.padded_rows, self.padded_columns))
        if self.padded:
            g = g[: self.rows, : self.columns]
        return ops.reshape(g, gradient.shape)


def _identities(layout: BlockLayout) -> np.ndarray:
    return np.tile(np.eye(layout.size, dtype=np.float32), (layout.count, 1, 1))
