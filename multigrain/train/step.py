"""What a training step reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import mindspore
import numpy as np
from mindspore import Parameter, Tensor

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.losses.objective import JointObjective
from multigrain.model.multigrain import MultiGrain
from multigrain.model.parameters import assign
from multigrain.model.state import CURVATURE_PREFIX, model_parameters
from multigrain.optim import schedules
from multigrain.optim.loss_scale import LossScale
from multigrain.optim.non_finite import NonFinite
from multigrain.optim.reduce import BucketedMean, Reducer
from multigrain.optim.thor.curvature import Curvature, RefreshResult
from multigrain.optim.update import Group, TrainableParameter, Update
from multigrain.specs.training import TrainingSpec
from multigrain.train.gradients import Forward, GradientFunction
from multigrain.train.non_finite import NonFiniteStepCounter, first_non_finite_layer


@dataclass(frozen=True)
class StepResult:
    """What a step did; the same on every worker.

    Attributes:
        step: steps done, this one included (from 1).
        loss, classification_loss, instance_loss: means over the workers, unscaled.
        learning_rate, damping: in use in this step; damping is 0 without THOR.
        skipped: nothing was updated, because a loss, a gradient or a factor was not finite.
        refreshed_layers: layers whose curvature this step renewed.
        curvature_layers: layers with curvature; 0 without THOR.
        beta: the margin loss's boundary, 0 without one.
        gem_p: the pooling exponent.
        stop_agreed: a worker asked to stop, and every worker sees it in this same step.
        kept_layers: layers that this step checked and left with the curvature they have.
        stopped_layers: layers whose curvature will not be renewed again, by now.
        skipped_because: what was not finite in a skipped step, and where.
        skipped_total: steps skipped so far.
        loss_scale: factor on the loss in this step.
    """

    step: int
    loss: float
    classification_loss: float
    instance_loss: float
    learning_rate: float
    damping: float
    skipped: bool
    refreshed_layers: int
    curvature_layers: int
    beta: float
    gem_p: float
    stop_agreed: bool
    kept_layers: int = 0
    stopped_layers: int = 0
    skipped_because: str = ""
    skipped_total: int = 0
    loss_scale: float = 1.0


# MERGED: One training step: gradients, curvature refresh, update.


__all__ = ["StepResult", "TrainStep"]

_COUNTERS = ("step", "skipped_in_row", "skipped_total", "refresh_due")


class TrainStep:
    """Trains a model one batch at a time.

    Args:
        model: its taps are attached here when the optimizer is THOR.
        objective: the joint loss.
        spec: optimizer, schedule, precision and seed are read.
        world: number of workers; above 1 ``mindspore.communication`` must be initialized.
        steps_per_epoch: for the schedules.
    """

    def __init__(
        self,
        model: MultiGrain,
        objective: JointObjective,
        spec: TrainingSpec,
        *,
        world: int,
        steps_per_epoch: int,
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
        trained = self._trained()
        self._statistics = [p for p in model_parameters(model).values() if not p.requires_grad]
        self._update = Update(
            trained,
            self._statistics,
            momentum=optimizer.momentum,
            weight_decay=optimizer.weight_decay,
            clipped=optimizer.clip_norm > 0,
            kl_clip=optimizer.thor.kl_clip,
        )
        self._names = [t.parameter.name for t in self._update.trained]
        # The backward pass ends with the first parameter of the network.
        self._backward = [self._names.index(t.parameter.name) for t in reversed(trained)]
        self._apply = _compiled(self._update)
        self._scale = LossScale(optimizer, spec.precision)
        self._gradients = GradientFunction(
            Forward(model, objective, scaled=self._scale.active),
            [t.parameter for t in self._update.trained],
            self._curvature.inverses if self._curvature else [],
            self._reducer,
            self._curvature.tap if self._curvature else _no_taps,
        )
        self._skips = NonFiniteStepCounter(optimizer.max_skipped_steps)
        self.step = 0
        self._refresh_due = True

    def __call__(
        self,
        images: Tensor | np.ndarray,
        labels: Tensor | np.ndarray,
        instances: Tensor | np.ndarray,
        *,
        stop: bool = False,
    ) -> StepResult:
        """Takes one step on this worker's batch.

        Args:
            images: (N, 3, H, W) float32.
            labels: (N,) int32, class indices.
            instances: (N,) int32; equal for augmented copies of one image, else different.
            stop: ask every worker to stop after this step (see ``stop_agreed``).
        Raises:
            MultigrainError: DIVERGED, after ``max_skipped_steps`` non-finite steps in a row.
        """
        optimizer, schedule = self._spec.optimizer, self._spec.schedule
        rate = schedules.learning_rate(schedule, self.step, self._steps_per_epoch)
        damping = 0.0
        refresh = False
        if self._curvature:
            damping = schedules.damping(optimizer.thor, self.step, self._steps_per_epoch)
            # A refresh whose step was skipped is made up for in the next step.
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
        done = RefreshResult()
        problem = found.problem(self._names, self._backward)
        if problem is None and refresh and self._curvature:
            done = self._curvature.refresh(found.factors, found.traces, damping, self.step)
            problem = done.problem
        if problem is None:
            clip = 1.0
            if optimizer.clip_norm > 0 and found.norm > optimizer.clip_norm:
                clip = optimizer.clip_norm / found.norm
            # beta's rate falls as the learning rate does.
            boundary = self._spec.objective.beta_learning_rate * rate / schedule.learning_rate.init
            self._apply(_scalar(rate), _scalar(boundary), _scalar(clip), *found.values)
            self._skips.good()
            self._scale.good()
            self._refresh_due = False
        else:
            problem = self._skip(problem, pictures, refresh)
        self.step += 1
        return StepResult(
            step=self.step,
            loss=found.loss,
            classification_loss=found.classification_loss,
            instance_loss=found.instance_loss,
            learning_rate=rate,
            damping=damping,
            skipped=problem is not None,
            skipped_because=f"{problem} is not finite" if problem else "",
            skipped_total=self._skips.total,
            loss_scale=scale,
            refreshed_layers=done.refreshed,
            kept_layers=done.kept,
            stopped_layers=self._curvature.stopped if self._curvature else 0,
            curvature_layers=len(self._curvature.layers) if self._curvature else 0,
            beta=self._objective.beta,
            gem_p=self._model.pool.value,
            stop_agreed=found.stop,
        )

    def state(self) -> dict[str, np.ndarray]:
        """Everything besides the model's own weights that the next step depends on; copies."""
        state = {name: p.asnumpy().copy() for name, p in self._state_parameters().items()}
        if self._curvature:
            state |= self._curvature.state()
        state |= self._scale.state()
        skips = self._skips
        counters = (self.step, skips.in_row, skips.total, int(self._refresh_due))
        for name, value in zip(_COUNTERS, counters, strict=True):
            state[name] = np.asarray(value, np.int64)
        return state

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from :meth:`state`; load the model's weights first.

        Raises:
            MultigrainError: CHECKPOINT, when an entry is missing, unknown or of another shape.
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
                f"the optimizer's state does not fit this job ({', '.join(wrong[:5])}); "
                "resume with the model, objective and optimizer it was saved with",
            )
        for name, parameter in parameters.items():
            assign(parameter, state[name])
        if self._curvature:
            self._curvature.load_state(state)
        self._scale.load_state(state)
        self.step, self._skips.in_row, self._skips.total, due = (
            int(state[name]) for name in _COUNTERS
        )
        self._refresh_due = bool(due)
        self._update.remember_statistics()

    def remember_statistics(self) -> None:
        """Call it after weights were loaded: a skipped step goes back to the running values now."""
        self._update.remember_statistics()

    def sync_statistics(self) -> None:
        """Averages BatchNorm's running means and variances over the workers.

        Each worker's are those of its own batches; call it on every worker before the model is
        saved or evaluated. Does nothing with one worker.
        """
        if self._reducer.world == 1 or not self._statistics:
            return
        mean = BucketedMean(self._reducer, [p.shape for p in self._statistics])
        for parameter, value in zip(self._statistics, mean(*self._statistics), strict=True):
            assign(parameter, value.asnumpy())
        self._update.remember_statistics()

    def curvature_table(self) -> str:
        """Which layers have curvature, with their dimensions and blocks."""
        return self._curvature.table() if self._curvature else "momentum: no curvature"

    def _skip(self, problem: NonFinite, images: Tensor, refresh: bool) -> NonFinite:
        """Undoes what the forward pass did; says where it broke, if it did."""
        if problem.what in ("loss", "gradient"):
            # ReLU(NaN) is 0 on some devices: the loss may be finite all the same. On several
            # workers the broken batch may be another one's, so nothing is decided by this.
            problem = replace(problem, layer=first_non_finite_layer(self._model, images) or "")
        self._update.restore_statistics()
        self._refresh_due = self._refresh_due or refresh
        forgiven = problem.scaled and self._scale.overflowed()
        self._skips.skip(self.step + 1, problem, forgiven=forgiven)
        return problem

    def _trained(self) -> list[TrainableParameter]:
        trained = []
        for p in self._model.trainable_params():
            if p.name.startswith(CURVATURE_PREFIX):
                continue
            exponent = self._model.pool.learn and p is self._model.pool.p
            group = Group.EXPONENT if exponent else Group.WEIGHTS
            cell = self._curvature.preconditioner(p) if self._curvature else None
            trained.append(TrainableParameter(p, group, cell))
        trained += [
            TrainableParameter(p, Group.BOUNDARY) for p in self._objective.trainable_params()
        ]
        return trained

    def _state_parameters(self) -> dict[str, Parameter]:
        parameters = {p.name: p for p in self._update.moments}
        if self._curvature:
            parameters |= {p.name: p for p in self._curvature.inverses}
        parameters |= {f"objective.{p.name}": p for p in self._objective.trainable_params()}
        return parameters


def _compiled(update: Update):  # type: ignore[no-untyped-def]
    @mindspore.jit
    def apply(rate, boundary_rate, clip, *gradients):  # type: ignore[no-untyped-def]
        return update(rate, boundary_rate, clip, *gradients)

    return apply


def _no_taps(on: bool) -> None:
    """Momentum attaches none."""


def _scalar(value: float) -> Tensor:
    return Tensor(value, mindspore.float32)


def _tensor(value: Tensor | np.ndarray, dtype: mindspore.Type) -> Tensor:
    if isinstance(value, Tensor):
        return value if value.dtype == dtype else value.astype(dtype)
    return Tensor(np.ascontiguousarray(value), dtype)
