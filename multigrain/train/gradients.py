"""Loss and gradients of one batch, averaged over the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mindspore
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from multigrain.optim.reduce import BucketedMean, Reducer


class Forward(nn.Cell):
    """Model and objective: the scaled joint loss, and the three losses unscaled."""

    def __init__(self, model: nn.Cell, objective: nn.Cell, loss_scale: float) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.objective = objective
        self.loss_scale = loss_scale

    def construct(
        self, images: Tensor, labels: Tensor, instances: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        embedding, logits = self.model(images)
        joint, classification, instance = self.objective(
            embedding, logits, labels, instances, noise
        )
        scaled = joint if self.loss_scale == 1.0 else joint * self.loss_scale
        return scaled, joint, classification, instance


@dataclass(frozen=True)
class Gradients:
    """What one batch gave, reduced over the workers.

    Attributes:
        loss, classification_loss, instance_loss: means over the workers.
        stop: whether any worker asked to stop.
        norm: global norm of the unscaled gradients; not finite when any of them is not.
        values: the unscaled gradients, in the order of the parameters.
        factors: this worker's own curvature factors, in the order of the slots; empty in a
            plain step. They are not averaged: which of them will be needed is not known yet.
    """

    loss: float
    classification_loss: float
    instance_loss: float
    stop: bool
    norm: float
    values: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]

    @property
    def finite(self) -> bool:
        """Whether the step can be taken. Every worker sees the same numbers here."""
        numbers = (self.loss, self.classification_loss, self.instance_loss, self.norm)
        return bool(np.isfinite(numbers).all())


class GradientFunction:
    """Two compiled functions of one network: gradients alone, and with the factors.

    The taps of the network are in both graphs; where no factor is asked for, nothing uses what
    they compute and the compiler drops it.
    """

    def __init__(
        self,
        forward: Forward,
        parameters: Sequence[Parameter],
        slots: Sequence[Parameter],
        reducer: Reducer,
    ) -> None:
        self._forward = forward
        self._slots = len(slots)
        self._plain = _compile(forward, parameters, (), reducer)
        self._with_factors = _compile(forward, parameters, slots, reducer) if slots else None

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        instances: Tensor,
        noise: Tensor,
        *,
        stop: bool,
        factors: bool,
    ) -> Gradients:
        # Evaluation may have switched the network; BatchNorm must use the batch here.
        if not (self._forward.training and self._forward.model.training):
            self._forward.set_train(True)
        function = self._with_factors if factors else self._plain
        if function is None:
            raise ValueError("there are no curvature slots to take factors from")
        flag = Tensor(float(stop), mindspore.float32)
        numbers, *tensors = function(images, labels, instances, noise, flag)
        loss, classification, instance, stops, squared = (float(x) for x in numbers.asnumpy())
        count = len(tensors) - (self._slots if factors else 0)
        norm = float(np.sqrt(squared)) if squared >= 0 else float("nan")
        return Gradients(
            loss, classification, instance, stops > 0, norm,
            tuple(tensors[:count]), tuple(tensors[count:]),
        )  # fmt: skip


class _Mean(nn.Cell):
    """Reduces and unscales what the gradient function gives; see :class:`GradientFunction`."""

    def __init__(
        self,
        reducer: Reducer,
        parameters: Sequence[Parameter],
        loss_scale: float,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.world = reducer.world
        self.reducer = reducer
        self.gradients = len(parameters)
        self.loss_scale = loss_scale
        if self.world > 1:
            self.mean = BucketedMean(reducer, [p.shape for p in parameters])
        self.each = ops.HyperMap()
        self.total = ops.ReduceSum()
        self.join = ops.Concat(0)

    def construct(self, numbers: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        gradients = tensors[: self.gradients]
        if self.world > 1:
            numbers = self.reducer(numbers) / self.world
            gradients = self.mean(*gradients)
        if self.loss_scale != 1.0:
            # The only place where the loss scale is taken off the gradients. (The taps take it
            # off the factors.)
            gradients = self.each(ops.partial(_unscale, 1.0 / self.loss_scale), gradients)
        squared = ops.reshape(self.total(self.join(self.each(_squares, gradients))), (1,))
        return (self.join((numbers, squared)), *gradients, *tensors[self.gradients :])


_unscale = ops.MultitypeFuncGraph("unscale")
_squares = ops.MultitypeFuncGraph("squares")


@_unscale.register("Number", "Tensor")
def _unscale_one(factor, gradient):  # type: ignore[no-untyped-def]
    return gradient * factor


@_squares.register("Tensor")
def _squares_of_one(gradient):  # type: ignore[no-untyped-def]
    """Sum of squares by row: reducing a large tensor at once is far slower on the CPU."""
    if gradient.ndim < 2:
        return ops.reshape(gradient * gradient, (-1,))
    rows = ops.reshape(gradient, (gradient.shape[0], -1))
    return ops.ReduceSum()(rows * rows, 1)


def _compile(
    forward: Forward,
    parameters: Sequence[Parameter],
    slots: Sequence[Parameter],
    reducer: Reducer,
) -> Callable[..., tuple[Tensor, ...]]:
    differentiate = mindspore.value_and_grad(
        forward, None, ParameterTuple([*parameters, *slots]), has_aux=True
    )
    mean = _Mean(reducer, parameters, forward.loss_scale)

    @mindspore.jit
    def gradients(images, labels, instances, noise, stop):  # type: ignore[no-untyped-def]
        (_, joint, classification, instance), tensors = differentiate(
            images, labels, instances, noise
        )
        return mean(ops.stack((joint, classification, instance, stop)), *tensors)

    return gradients
