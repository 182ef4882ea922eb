"""The parameter update: preconditioned gradient, KL clipping, weight decay, momentum, AdamW."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import mindspore
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from multigrain.model.parameters import assign
from multigrain.optim.thor.preconditioner import LayerPreconditioner, precondition


class ParameterGroup(Enum):
    """How a parameter is updated, like PyTorch's parameter groups."""

    WEIGHTS = "weights"  # learning rate, momentum, weight decay
    GEM_P = "gem_p"  # GeM's p: no weight decay, at least 1
    MARGIN_BETA = "margin_beta"  # margin loss's beta: own rate, momentum 0.9, no weight decay


MARGIN_BETA_MOMENTUM = 0.9
# Keeps the quotient of KL clipping finite when the learning rate or the gradient is 0.
KL_EPSILON = 1e-30


@dataclass(frozen=True)
class TrainableParameter:
    """A parameter, its group, and the preconditioner of its gradient, if any."""

    parameter: Parameter
    group: ParameterGroup
    preconditioner: LayerPreconditioner | None = None


class Update(nn.Cell):
    """Updates every parameter w with gradient g in place::

        g <- P(g)                    if it has a preconditioner
        g <- g + weight_decay * w    after preconditioning, as THOR does; BatchNorm and biases too
        m <- mu * m + g
        w <- w - lr * m

    The weight decay is therefore not preconditioned. It applies to every parameter of the network,
    as in THOR and in the MultiGrain recipe, except GeM's p and beta, for which shrinking toward 0
    has no meaning.

    With ``adamw`` the rule is that of AdamW (Loshchilov and Hutter, arXiv 1711.05101), as in
    ``torch.optim.AdamW``, in the t-th update that is not skipped::

        m <- mu * m + (1 - mu) * g
        v <- beta2 * v + (1 - beta2) * g^2
        w <- (1 - lr * weight_decay) * w
        w <- w - lr * (m / (1 - mu^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

    There, vectors (biases, BatchNorm) and p have no weight decay. beta is updated with momentum.

    Everything is mapped over tuples: a loop in a graph is unrolled into nested calls, of which
    MindSpore allows 1000.

    Args:
        trainable: the parameters.
        statistics: BatchNorm's running statistics. The forward pass has already changed them when
            the update runs; a copy of those of the latest update is kept (see
            :meth:`restore_statistics`).
        momentum: mu.
        weight_decay: L2 penalty.
        clipped: whether gradients are multiplied by ``clip`` (see :meth:`construct`).
        kl_clip: bound of the preconditioned step (K-FAC, in the notation of kfac-pytorch); 0 =
            none. Every P(g) is multiplied by one ``nu = min(1, sqrt(kl_clip / sum(lr^2 <g,
            P(g)>)))``, the sum over all preconditioned layers. Plain gradients are not affected.
        adamw: beta2 and epsilon of AdamW; None = momentum. No parameter has a preconditioner then.

    Attributes:
        trainable: the parameters in the order in which their gradients are given.
    """

    def __init__(
        self,
        trainable: Sequence[TrainableParameter],
        statistics: Sequence[Parameter],
        *,
        momentum: float,
        weight_decay: float,
        clipped: bool,
        kl_clip: float = 0.0,
        adamw: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        groups = ParameterGroup
        layers = [t for t in trainable if t.preconditioner is not None]
        plain = [t for t in trainable if t.preconditioner is None and t.group is groups.WEIGHTS]
        exponents = [t for t in trainable if t.group is groups.GEM_P]
        betas = [t for t in trainable if t.group is groups.MARGIN_BETA]
        self.trainable = (*layers, *plain, *exponents, *betas)
        self.layers = len(layers)
        self.decayed = len(layers) + len(plain)
        self.exponents = len(exponents)
        self.betas = len(betas)
        self.weights = ParameterTuple([t.parameter for t in self.trainable])
        self.moments = ParameterTuple([_zeros("momentum", t.parameter) for t in self.trainable])
        self.adamw = adamw is not None
        self.beta2, self.epsilon = adamw or (0.0, 0.0)
        self.log_momentum = math.log(max(momentum, 1e-38))
        self.log_beta2 = math.log(max(self.beta2, 1e-38))
        adaptive = self.trainable[: self.decayed + self.exponents] if self.adamw else ()
        self.squares = ParameterTuple([_zeros("square", t.parameter) for t in adaptive])
        self.decays = tuple(
            weight_decay if t.group is groups.WEIGHTS and t.parameter.ndim > 1 else 0.0
            for t in adaptive
        )
        self.updates = Parameter(
            Tensor(0.0, mindspore.float32), name="adamw.updates", requires_grad=False
        )
        cells = [t.preconditioner for t in layers if t.preconditioner is not None]
        self.a_inverses = ParameterTuple([cell.a_inverse for cell in cells])
        self.g_inverses = ParameterTuple([cell.g_inverse for cell in cells])
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.clipped = clipped
        self.kl_clip = kl_clip
        self.total = ops.ReduceSum()
        self.join = ops.Concat(0)
        self.each = ops.HyperMap()
        self.apply_momentum = ops.ApplyMomentum()
        self.statistics = ParameterTuple(list(statistics))
        self.count_statistics = len(self.statistics)
        self.saved_statistics = ParameterTuple(
            [
                Parameter(p.value().copy(), name=f"saved.{p.name}", requires_grad=False)
                for p in statistics
            ]
        )

    def construct(
        self, rate: Tensor, beta_rate: Tensor, clip: Tensor, *gradients: Tensor
    ) -> Tensor:
        """Updates all parameters and their moments.

        Args:
            rate: float32 scalar, learning rate.
            beta_rate: float32 scalar, learning rate of the margin loss's beta.
            clip: float32 scalar that multiplies every gradient if ``clipped``.
            gradients: in the order of ``trainable``.
        """
        if self.clipped:
            gradients = self.each(ops.partial(_scale, clip), gradients)
        layers, n, e = self.layers, self.decayed, self.decayed + self.exponents
        weights, moments = self.weights, self.moments
        apply = ops.partial(_apply, self.apply_momentum, rate, self.momentum, self.weight_decay)
        if self.adamw:
            updates = self.updates + 1.0
            ops.assign(self.updates, updates)
            # expm1: in float32, 1 - 0.999^t itself would lose four digits.
            mean_rate = -rate / ops.expm1(updates * self.log_momentum)
            square_factor = -1.0 / ops.expm1(updates * self.log_beta2)
            self.each(
                ops.partial(
                    _apply_adamw, rate, mean_rate, square_factor,
                    self.momentum, self.beta2, self.epsilon,
                ),
                self.decays, weights[:e], moments[:e], self.squares, gradients[:e],
            )  # fmt: skip
            if self.exponents > 0:
                self.each(_at_least_one, weights[n:e])
        elif layers > 0 and self.kl_clip > 0:
            steps = self.each(_precondition, gradients[:layers], self.a_inverses, self.g_inverses)
            products = self.join(self.each(_products, gradients[:layers], steps))
            length = ops.maximum(self.total(products) * rate * rate, KL_EPSILON)
            nu = ops.minimum(ops.sqrt(self.kl_clip / length), 1.0)
            steps = self.each(ops.partial(_scale, nu), steps)
            self.each(apply, weights[:layers], moments[:layers], steps)
        elif layers > 0:
            # One layer after the other: a preconditioned gradient is used at once, which frees
            # its memory for the next one.
            self.each(
                ops.partial(
                    _precondition_and_apply,
                    self.apply_momentum, rate, self.momentum, self.weight_decay,
                ),
                weights[:layers], moments[:layers], gradients[:layers],
                self.a_inverses, self.g_inverses,
            )  # fmt: skip
        if n > layers and not self.adamw:
            self.each(apply, weights[layers:n], moments[layers:n], gradients[layers:n])
        if self.exponents > 0 and not self.adamw:
            self.each(
                ops.partial(_apply_at_least_one, rate, self.momentum),
                weights[n:e], moments[n:e], gradients[n:e],
            )  # fmt: skip
        if self.betas > 0:
            self.each(
                ops.partial(_apply, self.apply_momentum, beta_rate, MARGIN_BETA_MOMENTUM, 0.0),
                weights[e:], moments[e:], gradients[e:],
            )  # fmt: skip
        if self.count_statistics > 0:
            self.each(_copy, self.saved_statistics, self.statistics)
        return rate

    def restore_statistics(self) -> None:
        """Undoes the changes of a skipped step's forward pass to BatchNorm's statistics."""
        for saved, parameter in zip(self.saved_statistics, self.statistics, strict=True):
            assign(parameter, saved.asnumpy())

    def remember_statistics(self) -> None:
        """Saves the present statistics for :meth:`restore_statistics` (after loading weights)."""
        for saved, parameter in zip(self.saved_statistics, self.statistics, strict=True):
            assign(saved, parameter.asnumpy())


def _zeros(kind: str, parameter: Parameter) -> Parameter:
    zeros = ops.zeros(parameter.shape, mindspore.float32)
    return Parameter(zeros, name=f"{kind}.{parameter.name}", requires_grad=False)


_scale = ops.MultitypeFuncGraph("scale")
_products = ops.MultitypeFuncGraph("products")
_precondition = ops.MultitypeFuncGraph("precondition")
_apply = ops.MultitypeFuncGraph("apply")
_precondition_and_apply = ops.MultitypeFuncGraph("precondition_and_apply")
_apply_at_least_one = ops.MultitypeFuncGraph("apply_at_least_one")
_apply_adamw = ops.MultitypeFuncGraph("apply_adamw")
_at_least_one = ops.MultitypeFuncGraph("at_least_one")
_copy = ops.MultitypeFuncGraph("copy")


@_scale.register("Tensor", "Tensor")
def _scale_one(factor, gradient):  # type: ignore[no-untyped-def]
    return gradient * factor


@_products.register("Tensor", "Tensor")
def _products_of_one(gradient, preconditioned):  # type: ignore[no-untyped-def]
    """Inner products by row: reducing a large tensor at once is far slower on the CPU."""
    rows = ops.reshape(gradient * preconditioned, (gradient.shape[0], -1))
    return ops.ReduceSum()(rows, 1)


@_precondition.register("Tensor", "Tensor", "Tensor")
def _precondition_one(gradient, a_inverse, g_inverse):  # type: ignore[no-untyped-def]
    return precondition(gradient, a_inverse, g_inverse)


@_apply.register("Function", "Tensor", "Number", "Number", "Tensor", "Tensor", "Tensor")
def _apply_one(operation, rate, momentum, decay, weight, moment, gradient):  # type: ignore[no-untyped-def]
    if decay > 0:
        gradient = gradient + decay * weight
    operation(weight, moment, rate, gradient, momentum)
    return True


@_precondition_and_apply.register(
    "Function", "Tensor", "Number", "Number", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor"
)
def _precondition_and_apply_one(  # type: ignore[no-untyped-def]
    operation, rate, momentum, decay, weight, moment, gradient, a_inverse, g_inverse
):
    step = precondition(gradient, a_inverse, g_inverse)
    return _apply_one(operation, rate, momentum, decay, weight, moment, step)


@_apply_at_least_one.register("Tensor", "Number", "Tensor", "Tensor", "Tensor")
def _apply_one_at_least_one(rate, momentum, weight, moment, gradient):  # type: ignore[no-untyped-def]
    m = momentum * moment + gradient
    ops.assign(moment, m)
    ops.assign(weight, ops.maximum(weight - rate * m, Tensor(1.0, mindspore.float32)))
    return True


@_apply_adamw.register(
    "Tensor", "Tensor", "Tensor", "Number", "Number", "Number",
    "Number", "Tensor", "Tensor", "Tensor", "Tensor",
)  # fmt: skip
def _apply_adamw_one(  # type: ignore[no-untyped-def]
    rate, mean_rate, square_factor, beta1, beta2, epsilon, decay, weight, moment, square, gradient
):
    m = beta1 * moment + (1.0 - beta1) * gradient
    v = beta2 * square + (1.0 - beta2) * gradient * gradient
    ops.assign(moment, m)
    ops.assign(square, v)
    w = weight
    if decay > 0:
        w = w - rate * decay * w
    ops.assign(weight, w - mean_rate * m / (ops.sqrt(v * square_factor) + epsilon))
    return True


@_at_least_one.register("Tensor")
def _one_at_least_one(weight):  # type: ignore[no-untyped-def]
    ops.assign(weight, ops.maximum(weight, Tensor(1.0, mindspore.float32)))
    return True


@_copy.register("Tensor", "Tensor")
def _copy_one(target, source):  # type: ignore[no-untyped-def]
    ops.assign(target, source)
    return True
