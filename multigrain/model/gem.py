"""Generalized-mean pooling (MultiGrain, arXiv 1902.05509, equation 1)."""

from __future__ import annotations

import math

import mindspore
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from multigrain.errors import MultigrainError
from multigrain.model.parameters import assign

EPSILON = 1e-6


class GeM(nn.Cell):
    """Pools (N, C, H, W) to (N, C), always in float32.

    For every channel with positions Omega::

        y = ( 1/|Omega| * sum_u max(x_u, eps)^p )^(1/p),            eps = 1e-6
        dy/dx_u = 1/|Omega| * (x_u / y)^(p-1)   where x_u > eps, else 0
        dy/dp   = y * ( sum_u x_u^p ln x_u / (p sum_u x_u^p) - ln(mean_u x_u^p) / p^2 )

    It is computed as ``m * mean((x/m)^p)^(1/p)`` with ``m = max_u x_u``: the same value, but no
    power can overflow, and at least one term of the mean is 1. ``m`` is treated as a constant in
    the gradient (its total derivative is zero).

    p = 1 is plain average pooling (without the clamp) and p = infinity is max pooling; both are
    selected when the graph is built. Always float32: float16 would underflow at eps^2 already.

    Args:
        p: exponent, >= 1; may be infinity if it is not learned.
        learn: make p a trainable scalar (the general form is then used for every value).
    """

    def __init__(self, p: float = 3.0, *, learn: bool = False) -> None:
        super().__init__()
        _check(p, learn)
        self.learn = learn
        self.exponent = float(p)
        if learn:
            self.p = Parameter(Tensor(float(p), mindspore.float32), name="p")
        self.average = (not learn) and p == 1
        self.maximum = (not learn) and math.isinf(p)
        self.mean_positions = ops.ReduceMean(keep_dims=False)
        self.mean_kept = ops.ReduceMean(keep_dims=True)
        self.max_positions = ops.ReduceMax(keep_dims=False)
        self.max_kept = ops.ReduceMax(keep_dims=True)

    def construct(self, x: Tensor) -> Tensor:
        x = ops.cast(x, mindspore.float32)
        if self.average:
            return self.mean_positions(x, (2, 3))
        if self.maximum:
            return self.max_positions(x, (2, 3))
        # The clamp max(x, eps), in a form that every export format supports.
        x = ops.relu(x - EPSILON) + EPSILON
        m = ops.stop_gradient(self.max_kept(x, (2, 3)))
        p = self.p if self.learn else self.exponent
        pooled = m * ops.pow(self.mean_kept(ops.pow(x / m, p), (2, 3)), 1.0 / p)
        return ops.reshape(pooled, (x.shape[0], x.shape[1]))

    @property
    def value(self) -> float:
        """The exponent in use."""
        return float(self.p.asnumpy()) if self.learn else self.exponent

    def set_exponent(self, p: float) -> None:
        """Replaces the exponent. Call it before the first call in graph mode."""
        _check(p, self.learn)
        if self.learn:
            assign(self.p, np.asarray(p))
        self.exponent = float(p)
        self.average = (not self.learn) and p == 1
        self.maximum = (not self.learn) and math.isinf(p)


def _check(p: float, learn: bool) -> None:
    if not p >= 1:
        raise MultigrainError.field("spec.model.gem_p", f"must be at least 1, is {p}")
    if learn and math.isinf(p):
        raise MultigrainError.field(
            "spec.model.gem_p", "infinity cannot be learned; set learn_gem_p to false or gem_p to 3"
        )
