"""Loss, gradients and curvature factors of one batch, averaged over the workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mindspore
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from multigrain import memory
from multigrain.optim.non_finite import NonFinite, first_non_finite_gradient
from multigrain.optim.reduce import BucketedMean, Reducer
from multigrain.train.compile_cache import CompileCache


class Forward(nn.Cell):
    """Model and objective: (scaled joint loss, joint, classification and instance loss).

    Args:
        model: images -> embedding, logits.
        objective: the joint loss.
        scaled: whether the loss to differentiate is multiplied by the loss scale.
    """

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
    """Losses and gradients of one batch, reduced over the workers.

    Attributes:
        loss, classification_loss, instance_loss: means over the workers, unscaled.
        stop: whether any worker asked to stop.
        norm: global norm of the unscaled gradients; non-finite if any gradient is.
        values: the unscaled gradients, in the order of the parameters.
        factors: this worker's own curvature factors, in the order of the slots; empty in a
            step without refresh. Not averaged yet: the refresh rule first selects the layers.
        traces: (2, L) traces of the factors, averaged over the workers: all A, then all G.
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
        """Finds a non-finite loss or gradient; the same result on every worker.

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
    """Two compiled functions of one network: gradients without and with curvature factors.

    Args:
        forward: model and objective.
        parameters: those to differentiate by.
        slots: the taps' slots; empty without THOR.
        reducer: all-reduce over the workers.
        tap: switches the network's taps on or off for graphs that are compiled from then on. In
            the function without factors the compiler would remove them as unused, but only
            after spending seconds on them.
        cache: of compiled graphs.
        weights: all parameters that the graphs use, by name.

    Attributes:
        compiled: whether the latest call compiled its function, or loaded it.
    """

    def __init__(
        self,
        forward: Forward,
        parameters: Sequence[Parameter],
        slots: Sequence[Parameter],
        reducer: Reducer,
        tap: Callable[[bool], None],
        cache: CompileCache,
        weights: Mapping[str, Parameter],
    ) -> None:
        self._forward = forward
        self._tap = tap
        self._cache = cache
        self._weights = weights
        self._count = len(parameters)
        self._compiled: set[tuple[bool, tuple[int, ...]]] = set()
        self.compiled = False
        self._plain = _Function(forward, parameters, (), reducer)
        self._with_factors = _Function(forward, parameters, slots, reducer) if slots else None

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
        """Computes losses and gradients of one batch. Collective.

        Args:
            images: (N, 3, H, W) float32.
            labels: (N,) int32.
            instances: (N,) int32.
            noise: sampling noise of the objective.
            scale: the loss scale; used only if the forward pass is ``scaled``.
            stop: whether this worker asks to stop.
            factors: whether to compute the curvature factors too.
        """
        # Evaluation may have switched the network to inference mode.
        if not (self._forward.training and self._forward.model.training):
            self._forward.set_train(True)
        function = self._with_factors if factors else self._plain
        if function is None:
            raise ValueError("there are no curvature slots to take factors from")
        self._tap(factors)  # a batch of another shape is compiled again
        inputs = (
            images,
            labels,
            instances,
            noise,
            Tensor(scale, mindspore.float32),
            Tensor(float(stop), mindspore.float32),
        )
        graph = factors, tuple(images.shape)
        self.compiled = graph not in self._compiled
        if self.compiled:
            name = "gradients and factors" if factors else "gradients"
            cells = (self._forward, function.mean)
            with self._cache.compiling(name, cells, inputs, self._weights):
                numbers, *tensors = function.call(*inputs)
                found = numbers.asnumpy().astype(np.float64)
            self._compiled.add(graph)
            memory.release_freed_memory()
        else:
            numbers, *tensors = function.call(*inputs)
            found = numbers.asnumpy().astype(np.float64)
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
    """Averages over the workers and unscales; see :class:`GradientFunction`."""

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
            # The loss scale is removed only here, and from G above.
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
    """G is of second order in the derivatives. Not ``factor ** 2``, which may overflow."""
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


class _Function:
    """A compiled function, ``call``, and the cell that it ends with."""

    def __init__(
        self,
        forward: Forward,
        parameters: Sequence[Parameter],
        slots: Sequence[Parameter],
        reducer: Reducer,
    ) -> None:
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

        self.mean = mean
        self.call: Callable[..., tuple[Tensor, ...]] = gradients
