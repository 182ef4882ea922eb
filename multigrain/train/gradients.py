"""Loss and gradients of one batch, averaged over the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mindspore
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from multigrain import memory
from multigrain.optim.non_finite import NonFinite, first_non_finite_gradient
from multigrain.optim.reduce import BucketedMean, Reducer


class Forward(nn.Cell):
    """Model and objective: the joint loss, times the loss scale if ``scaled``, and all three."""

    def __init__(self, model: nn.Cell, objective: nn.Cell, *, scaled: bool) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.objective = objective
        self.scaled = scaled

    def construct(
        self, images: Tensor, labels: Tensor, instances: Tensor, noise: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        embedding, logits = self.model(images)
        joint, classification, instance = self.objective(
            embedding, logits, labels, instances, noise
        )
        differentiated = joint * scale if self.scaled else joint
        return differentiated, joint, classification, instance


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
        traces: (2, L) traces of the factors, averaged: of all A, then of all G.
    """

    loss: float
    classification_loss: float
    instance_loss: float
    stop: bool
    norm: float
    values: tuple[Tensor, ...]
    factors: list[Tensor]
    traces: np.ndarray

    def problem(self, names: Sequence[str], backward: Sequence[int]) -> NonFinite | None:
        """What of losses and gradients is not finite; every worker sees the same numbers here.

        Args:
            names: the parameters' names, in the order of ``values``.
            backward: their indices, in the order of the backward pass.
        """
        terms = {
            "classification loss": self.classification_loss,
            "instance loss": self.instance_loss,
            "joint loss": self.loss,
        }
        for term, value in terms.items():
            if not np.isfinite(value):
                return NonFinite("loss", term)
        if np.isfinite(self.norm):
            return None
        return first_non_finite_gradient([(names[i], self.values[i]) for i in backward])


class GradientFunction:
    """Two compiled functions of one network: gradients alone, and with the factors.

    Args:
        slots: the taps' slots; none without THOR.
        tap: puts the network's taps in, or leaves them out of, a graph that is compiled now.
            Without factors nothing would use what they compute: the compiler would drop them,
            after seconds spent on them.
    """

    def __init__(
        self,
        forward: Forward,
        parameters: Sequence[Parameter],
        slots: Sequence[Parameter],
        reducer: Reducer,
        tap: Callable[[bool], None],
    ) -> None:
        self._forward = forward
        self._tap = tap
        self._count = len(parameters)
        self._compiled: set[bool] = set()
        self._plain = _compile(forward, parameters, (), reducer)
        self._with_factors = _compile(forward, parameters, slots, reducer) if slots else None

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        instances: Tensor,
        noise: Tensor,
        *,
        scale: float,
        stop: bool,
        factors: bool,
    ) -> Gradients:
        """Args: ``scale``, the loss scale; read only where the forward pass is ``scaled``."""
        # Evaluation may have switched the network; BatchNorm must use the batch here.
        if not (self._forward.training and self._forward.model.training):
            self._forward.set_train(True)
        function = self._with_factors if factors else self._plain
        if function is None:
            raise ValueError("there are no curvature slots to take factors from")
        self._tap(factors)  # a batch of another shape compiles anew
        numbers, *tensors = function(
            images,
            labels,
            instances,
            noise,
            Tensor(scale, mindspore.float32),
            Tensor(float(stop), mindspore.float32),
        )
        found = numbers.asnumpy().astype(np.float64)
        if factors not in self._compiled:
            self._compiled.add(factors)
            memory.trim()
        squared, loss, classification, instance, stops = (float(x) for x in found[:5])
        return Gradients(
            loss,
            classification,
            instance,
            stops > 0,
            float(np.sqrt(squared)) if squared >= 0 else float("nan"),
            tuple(tensors[: self._count]),
            tensors[self._count :],
            found[5:].reshape(2, -1),
        )


class _Mean(nn.Cell):
    """Reduces and unscales what the gradient function gives; see :class:`GradientFunction`."""

    def __init__(
        self,
        reducer: Reducer,
        parameters: Sequence[Parameter],
        slots: int,
        *,
        scaled: bool,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.world = reducer.world
        self.reducer = reducer
        self.gradients = len(parameters)
        self.first_g = self.gradients + slots // 2
        self.slots = slots
        self.scaled = scaled
        if self.world > 1:
            self.mean = BucketedMean(reducer, [p.shape for p in parameters])
        self.each = ops.HyperMap()
        self.total = ops.ReduceSum()
        self.join = ops.Concat(0)

    def construct(self, numbers: Tensor, scale: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        gradients = tensors[: self.gradients]
        factors_a = tensors[self.gradients : self.first_g]
        factors_g = tensors[self.first_g :]
        traces = ()
        if self.slots > 0:
            if self.scaled:
                factors_g = self.each(ops.partial(_unscale_square, 1.0 / scale), factors_g)
            traces = self.each(_trace, factors_a + factors_g)
            numbers = self.join((numbers, *traces))
        if self.world > 1:
            numbers = self.reducer(numbers) / self.world
            gradients = self.mean(*gradients)
        if self.scaled:
            # The only place where the loss scale is taken off: here, and off G above.
            gradients = self.each(ops.partial(_unscale, 1.0 / scale), gradients)
        squared = ops.reshape(self.total(self.join(self.each(_squares, gradients))), (1,))
        numbers = self.join((squared, numbers))
        return (numbers, *gradients, *factors_a, *factors_g)


_unscale = ops.MultitypeFuncGraph("unscale")
_unscale_square = ops.MultitypeFuncGraph("unscale_square")
_squares = ops.MultitypeFuncGraph("squares")
_trace = ops.MultitypeFuncGraph("trace")


@_unscale.register("Tensor", "Tensor")
def _unscale_one(factor, tensor):  # type: ignore[no-untyped-def]
    return tensor * factor


@_unscale_square.register("Tensor", "Tensor")
def _unscale_one_square(factor, tensor):  # type: ignore[no-untyped-def]
    """Of the second order in the derivatives. One by one: the square of a scale may overflow."""
    return tensor * factor * factor


@_trace.register("Tensor")
def _trace_of_one(blocks):  # type: ignore[no-untyped-def]
    count, size, _ = blocks.shape
    diagonals = ops.reshape(blocks, (count, size * size))[:, :: size + 1]
    return ops.reshape(ops.ReduceSum()(diagonals), (1,))


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
    mean = _Mean(reducer, parameters, len(slots), scaled=forward.scaled)

    @mindspore.jit
    def gradients(images, labels, instances, noise, scale, stop):  # type: ignore[no-untyped-def]
        (_, joint, classification, instance), tensors = differentiate(
            images, labels, instances, noise, scale
        )
        return mean(ops.stack((joint, classification, instance, stop)), scale, *tensors)

    return gradients
