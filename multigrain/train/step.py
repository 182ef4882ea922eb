"""One training step: gradients, curvature refresh, parameter update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mindspore
import numpy as np
from mindspore import Parameter, Tensor

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.events.records import LossRecord
from multigrain.losses.objective import JointObjective
from multigrain.model.multigrain import MultiGrain
from multigrain.model.parameters import assign
from multigrain.model.state import CURVATURE_PREFIX, model_parameters
from multigrain.optim import schedules
from multigrain.optim.loss_scale import LossScale
from multigrain.optim.non_finite import NonFinite
from multigrain.optim.reduce import BucketedMean, Reducer
from multigrain.optim.thor.curvature import Curvature, RefreshResult
from multigrain.optim.update import ParameterGroup, TrainableParameter, Update
from multigrain.specs.training import TrainingSpec
from multigrain.train.compile_cache import CompileCache
from multigrain.train.gradients import Forward, GradientFunction
from multigrain.train.non_finite import NonFiniteStepCounter, first_non_finite_layer

# Counters in a checkpoint's state, in the order of ``TrainStep.state``.
_COUNTERS = ("step", "skipped_in_row", "skipped_total", "refresh_due")


class TrainStep:
    """Trains a model one batch at a time.

    Args:
        model: the network. With THOR, curvature taps are attached to it here.
        objective: the joint loss.
        spec: optimizer, schedule, precision and seed are read.
        world: number of workers. With more than one, ``mindspore.communication`` must have been
            initialized.
        steps_per_epoch: used by the schedules.
        cache: of compiled graphs; None = every graph is compiled.

    Attributes:
        step: number of steps done.
        stop_agreed: whether any worker asked to stop in the latest step; the same on every
            worker.
        compiled: whether the latest step compiled a graph, or loaded one.
    """

    def __init__(
        self,
        model: MultiGrain,
        objective: JointObjective,
        spec: TrainingSpec,
        *,
        world: int,
        steps_per_epoch: int,
        cache: CompileCache | None = None,
    ) -> None:
        self._model = model
        self._objective = objective
        self._spec = spec
        self._steps_per_epoch = steps_per_epoch
        self._reducer = Reducer(world)
        optimizer = spec.optimizer
        model.set_precision(spec.precision)
        if mindspore.get_context("device_target") == "CPU":
            model.speed_up_small_maps()
        self._curvature: Curvature | None = None
        if optimizer.kind == "thor":
            self._curvature = Curvature(
                model, optimizer.thor, steps_per_epoch=steps_per_epoch, reducer=self._reducer
            )
        trainable = self._trainable()
        self._statistics = [p for p in model_parameters(model).values() if not p.requires_grad]
        self._update = Update(
            trainable,
            self._statistics,
            momentum=optimizer.momentum,
            weight_decay=optimizer.weight_decay,
            clipped=optimizer.clip_norm > 0,
            kl_clip=optimizer.thor.kl_clip,
            adamw=(optimizer.beta2, optimizer.epsilon) if optimizer.kind == "adamw" else None,
        )
        self._names = [t.parameter.name for t in self._update.trainable]
        # The backward pass ends with the first parameter of the network.
        self._backward_order = [self._names.index(t.parameter.name) for t in reversed(trainable)]
        self._apply = _compiled(self._update)
        self._applied = False
        self._cache = cache or CompileCache(None, Path(), spec)
        weights = self._weights()
        self._scale = LossScale(optimizer, spec.precision)
        self._gradients = GradientFunction(
            Forward(model, objective, scaled=self._scale.active),
            [t.parameter for t in self._update.trainable],
            self._curvature.inverses if self._curvature else [],
            self._reducer,
            self._curvature.tap if self._curvature else _no_taps,
            self._cache,
            weights,
        )
        self._skipped = NonFiniteStepCounter(optimizer.max_skipped_steps)
        self.step = 0
        self.stop_agreed = False
        self.compiled = False
        self._refresh_due = True

    def __call__(
        self,
        images: Tensor | np.ndarray,
        labels: Tensor | np.ndarray,
        instances: Tensor | np.ndarray,
        *,
        stop: bool = False,
    ) -> LossRecord:
        """Takes one step on this worker's batch. Collective.

        A step with a non-finite loss, gradient or curvature factor is skipped: it changes neither
        the weights nor BatchNorm's running statistics.

        Args:
            images: (N, 3, H, W) float32.
            labels: (N,) int32, class indices.
            instances: (N,) int32; equal for augmented copies of one image, else different.
            stop: ask every worker to stop after this step (see ``stop_agreed``).

        Returns:
            What the step measured, the same on every worker: losses are means over the workers
            without the loss scale. The fields about the run (epoch, totals, speed) have their
            defaults; the training loop fills them in.

        Raises:
            MultigrainError: DIVERGED, after ``max_skipped_steps`` non-finite steps in a row.
        """
        optimizer, schedule = self._spec.optimizer, self._spec.schedule
        rate = schedules.learning_rate(schedule, self.step, self._steps_per_epoch)
        damping = 0.0
        refresh = False
        if self._curvature:
            damping = schedules.damping(optimizer.thor, self.step, self._steps_per_epoch)
            # A refresh due in a skipped step is deferred to the next step.
            refresh = self._refresh_due or self._curvature.due(self.step)
        noise = self._objective.noise(len(labels), (self._spec.seed, self.step, self._reducer.rank))
        pictures = _tensor(images, mindspore.float32)
        scale = self._scale.value
        found = self._gradients(
            pictures,
            _tensor(labels, mindspore.int32),
            _tensor(instances, mindspore.int32),
            noise,
            scale=scale,
            stop=stop,
            factors=refresh,
        )
        self.compiled = self._gradients.compiled
        done = RefreshResult()
        problem = found.problem(self._names, self._backward_order)
        if problem is None and refresh and self._curvature:
            done = self._curvature.refresh(found.factors, found.traces, damping, self.step)
            problem = done.problem
        if problem is None:
            clip = 1.0
            if optimizer.clip_norm > 0 and found.norm > optimizer.clip_norm:
                clip = optimizer.clip_norm / found.norm
            # beta's learning rate decays like the weights'.
            beta_rate = self._spec.objective.beta_learning_rate * rate / schedule.learning_rate.init
            self._update_parameters(
                (_scalar(rate), _scalar(beta_rate), _scalar(clip), *found.values)
            )
            self._skipped.step_applied()
            self._scale.step_applied()
            self._refresh_due = False
        else:
            problem = self._skip(problem, pictures, refresh)
        self.step += 1
        self.stop_agreed = found.stop
        return LossRecord(
            step=self.step,
            total_steps=0,
            epoch=0,
            total_epochs=0,
            loss=found.loss,
            classification_loss=found.classification_loss,
            instance_loss=found.instance_loss,
            learning_rate=rate,
            damping=damping,
            skipped=problem is not None,
            skipped_because=f"{problem} is not finite" if problem else "",
            skipped_total=self._skipped.total,
            loss_scale=scale,
            refreshed_layers=done.refreshed,
            kept_layers=done.kept,
            stopped_layers=self._curvature.stopped if self._curvature else 0,
            curvature_layers=len(self._curvature.layers) if self._curvature else 0,
            beta=self._objective.beta,
            gem_p=self._model.pool.value,
        )

    def state(self) -> dict[str, np.ndarray]:
        """Returns copies of everything the next step depends on besides the model's weights."""
        state = {name: p.asnumpy().copy() for name, p in self._state_parameters().items()}
        if self._curvature:
            state |= self._curvature.state()
        state |= self._scale.state()
        skipped = self._skipped
        counters = (self.step, skipped.in_row, skipped.total, int(self._refresh_due))
        for name, value in zip(_COUNTERS, counters, strict=True):
            state[name] = np.asarray(value, np.int64)
        return state

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores what :meth:`state` returned. Load the model's weights first.

        Raises:
            MultigrainError: CHECKPOINT, if an entry is missing, unknown or has another shape.
        """
        parameters = self._state_parameters()
        rules = self._scale.state() | (self._curvature.state() if self._curvature else {})
        shapes = {name: tuple(p.shape) for name, p in (parameters | rules).items()}
        wrong = sorted((set(shapes) | set(_COUNTERS)) ^ set(state)) or sorted(
            name for name, shape in shapes.items() if tuple(state[name].shape) != shape
        )
        if wrong:
            raise MultigrainError(
                ErrorKind.CHECKPOINT,
                f"the optimizer state does not match this job ({', '.join(wrong[:5])}); "
                "resume with the model, objective and optimizer it was saved with",
            )
        for name, parameter in parameters.items():
            assign(parameter, state[name])
        if self._curvature:
            self._curvature.load_state(state)
        self._scale.load_state(state)
        self.step, self._skipped.in_row, self._skipped.total, due = (
            int(state[name]) for name in _COUNTERS
        )
        self._refresh_due = bool(due)
        self._update.remember_statistics()

    def remember_statistics(self) -> None:
        """Takes BatchNorm's present running statistics as those a skipped step restores.

        Call it after loading weights.
        """
        self._update.remember_statistics()

    def sync_statistics(self) -> None:
        """Averages BatchNorm's running means and variances over the workers. Collective.

        Each worker has accumulated those of its own batches. Call it before the model is saved
        or evaluated. With one worker it does nothing.
        """
        if self._reducer.world == 1 or not self._statistics:
            return
        mean = BucketedMean(self._reducer, [p.shape for p in self._statistics])
        for parameter, value in zip(self._statistics, mean(*self._statistics), strict=True):
            assign(parameter, value.asnumpy())
        self._update.remember_statistics()

    def curvature_table(self) -> str:
        """Returns a table of the preconditioned and the excluded layers, for the log."""
        return (
            self._curvature.table()
            if self._curvature
            else f"{self._spec.optimizer.kind}: no curvature"
        )

    def _update_parameters(self, inputs: Sequence[Tensor]) -> None:
        if self._applied:
            self._apply(*inputs)
            return
        with self._cache.compiling("update", (self._update,), inputs, self._weights()):
            self._apply(*inputs)
        self._applied = self.compiled = True

    def _weights(self) -> dict[str, Parameter]:
        """Everything that the graphs read or change, by the names that it has in them."""
        parameters = [
            *self._model.get_parameters(),
            *self._objective.get_parameters(),
            *self._update.moments,
            *self._update.squares,
            self._update.updates,
            *self._update.saved_statistics,
            *(self._curvature.inverses if self._curvature else ()),
        ]
        return {parameter.name: parameter for parameter in parameters}

    def _skip(self, problem: NonFinite, images: Tensor, refresh: bool) -> NonFinite:
        """Undoes the forward pass's changes; adds the first non-finite layer to ``problem``."""
        if problem.what in ("loss", "gradient"):
            # For the message only: with several workers the non-finite batch may be another
            # worker's. Also after a finite loss, because ReLU(NaN) is 0 on some devices.
            problem = replace(problem, layer=first_non_finite_layer(self._model, images) or "")
        self._update.restore_statistics()
        self._refresh_due = self._refresh_due or refresh
        retry_with_smaller_scale = problem.scaled and self._scale.step_overflowed()
        self._skipped.step_skipped(self.step + 1, problem, tolerated=retry_with_smaller_scale)
        return problem

    def _trainable(self) -> list[TrainableParameter]:
        trainable = []
        for p in self._model.trainable_params():
            if p.name.startswith(CURVATURE_PREFIX):
                continue
            is_gem_p = self._model.pool.learn and p is self._model.pool.p
            group = ParameterGroup.GEM_P if is_gem_p else ParameterGroup.WEIGHTS
            preconditioner = self._curvature.preconditioner(p) if self._curvature else None
            trainable.append(TrainableParameter(p, group, preconditioner))
        trainable += [
            TrainableParameter(p, ParameterGroup.MARGIN_BETA)
            for p in self._objective.trainable_params()
        ]
        return trainable

    def _state_parameters(self) -> dict[str, Parameter]:
        parameters = {p.name: p for p in (*self._update.moments, *self._update.squares)}
        if self._update.adamw:
            parameters[self._update.updates.name] = self._update.updates
        if self._curvature:
            parameters |= {p.name: p for p in self._curvature.inverses}
        parameters |= {f"objective.{p.name}": p for p in self._objective.trainable_params()}
        return parameters


def _compiled(update: Update):  # type: ignore[no-untyped-def]
    @mindspore.jit
    def apply(rate, beta_rate, clip, *gradients):  # type: ignore[no-untyped-def]
        return update(rate, beta_rate, clip, *gradients)

    return apply


def _no_taps(on: bool) -> None:
    """With momentum there are no taps to switch."""


def _scalar(value: float) -> Tensor:
    return Tensor(value, mindspore.float32)


def _tensor(value: Tensor | np.ndarray, dtype: mindspore.Type) -> Tensor:
    if isinstance(value, Tensor):
        return value if value.dtype == dtype else value.astype(dtype)
    return Tensor(np.ascontiguousarray(value), dtype)
