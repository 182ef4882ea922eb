"""Preconditioning: a gradient times the inverse factors of its layer, block by block."""

from __future__ import annotations

import mindspore
from mindspore import Parameter, Tensor, nn, ops

from multigrain.model.state import CURVATURE_PREFIX
from multigrain.optim.thor.blocks import BlockLayout


def precondition(gradient: Tensor, a_inverse: Tensor, g_inverse: Tensor) -> Tensor:
    """Applies the inverse factors of a layer to its gradient, block by block::

        P(g) = (sqrt(T) G + sqrt(lambda) I)^-1  g  (sqrt(T) A + sqrt(lambda) I)^-1

    With F = T (A (x) G) the layer's Fisher matrix this is ``(F + damping)^-1`` applied to g,
    damped on each side by sqrt(lambda / T) and without pi correction, as THOR does
    (MindSpore's THOR, K-FAC arXiv 1503.05671 section 6.3). Block (h, w) of the gradient is
    multiplied by block h of the output side's inverse and block w of the input side's.

    Args:
        gradient: (O, ...), reshaped to an O x I matrix.
        a_inverse: (a, s, s) blocks of the input side, a * s >= I.
        g_inverse: (g, r, r) blocks of the output side, g * r >= O.

    Returns:
        The shape of ``gradient``.
    """
    multiply = ops.BatchMatMul()
    rows = gradient.shape[0]
    g = ops.reshape(gradient, (rows, -1))
    columns = g.shape[1]
    g_count, g_size, _ = g_inverse.shape
    a_count, a_size, _ = a_inverse.shape
    padded_rows = g_count * g_size
    padded_columns = a_count * a_size
    if padded_rows > rows:
        g = ops.Concat(0)((g, ops.zeros((padded_rows - rows, columns), mindspore.float32)))
    if padded_columns > columns:
        border = ops.zeros((padded_rows, padded_columns - columns), mindspore.float32)
        g = ops.Concat(1)((g, border))
    g = multiply(g_inverse, ops.reshape(g, (g_count, g_size, padded_columns)))
    if a_count == 1:
        g = multiply(ops.reshape(g, (1, padded_rows, a_size)), a_inverse)
    else:
        # Not ``transpose``, whose kernel keeps its memory (see ``taps.concat_examples``).
        g = ops.reshape(g, (padded_rows, padded_columns))
        g = ops.reshape(ops.Concat(0)(ops.Split(1, a_count)(g)), (a_count, padded_rows, a_size))
        g = ops.Concat(1)(ops.Unstack(0, a_count)(multiply(g, a_inverse)))
    g = ops.reshape(g, (padded_rows, padded_columns))
    if padded_rows > rows or padded_columns > columns:
        g = g[:rows, :columns]
    return ops.reshape(g, gradient.shape)


class LayerPreconditioner(nn.Cell):
    """The stored inverses of one layer; see :func:`precondition`.

    Until the first refresh they are identities, which leave the gradient as it is.

    Args:
        name: the layer's path in the network.
        a: block layout of the input side.
        g: block layout of the output side.
    """

    def __init__(self, name: str, a: BlockLayout, g: BlockLayout) -> None:
        super().__init__(auto_prefix=False)
        self.a_inverse = Parameter(
            Tensor(a.identities()), name=f"{CURVATURE_PREFIX}{name}.a_inverse"
        )
        self.g_inverse = Parameter(
            Tensor(g.identities()), name=f"{CURVATURE_PREFIX}{name}.g_inverse"
        )

    def construct(self, gradient: Tensor) -> Tensor:
        return precondition(gradient, self.a_inverse, self.g_inverse)
