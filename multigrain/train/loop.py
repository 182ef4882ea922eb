"""Speed of training: images a second, share of time spent waiting for data, time left."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from mindspore import Tensor, nn

from multigrain.checkpoint import store
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.data.fingerprint import DatasetFingerprint
from multigrain.data.pipeline import TrainingData
from multigrain.events.records import EvaluationRecord, LogRecord, LossRecord
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.model.state import model_state
from multigrain.specs.evaluation import MetricName
from multigrain.specs.training import CheckpointSpec, ModelSpec, TrainingSpec
from multigrain.train.step import StepResult, TrainStep

T = TypeVar("T")


class Meter:
    """Times the steps of one worker.

    The figures are means over the latest ``window`` steps. The first two steps of a run compile
    their graphs, so they are left out once there are others.

    Args:
        images_per_step: images of one step over all workers.
        window: steps that the means look back.
    """

    def __init__(self, images_per_step: int, window: int = 50) -> None:
        self._images = images_per_step
        self._seconds: deque[float] = deque(maxlen=window)
        self._waits: deque[float] = deque(maxlen=window)
        self._steps = 0
        self._wait = 0.0
        self._aside = 0.0
        self._last = time.monotonic()

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """Passes batches on, adding the time spent in getting each to the data wait."""
        while True:
            begin = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._wait += time.monotonic() - begin
            yield batch

    def step_done(self) -> float:
        """Ends a step that began when the previous one ended; returns its seconds."""
        now = time.monotonic()
        seconds = now - self._last
        if self._steps == 2:
            self._seconds.clear()
            self._waits.clear()
        self._seconds.append(seconds)
        self._waits.append(min(self._wait, seconds))
        self._steps += 1
        self._last = now
        self._wait = 0.0
        return seconds

    def aside_done(self) -> None:
        """Ends what was done since the latest step and belongs to none: an evaluation, say."""
        now = time.monotonic()
        self._aside += now - self._last
        self._last = now

    @property
    def images_per_second(self) -> float:
        total = sum(self._seconds)
        return self._images * len(self._seconds) / total if total > 0 else 0.0

    @property
    def data_wait(self) -> float:
        """Share of the time, 0..1."""
        total = sum(self._seconds)
        return sum(self._waits) / total if total > 0 else 0.0

    def eta_seconds(self, steps_left: int) -> float:
        """Seconds that ``steps_left`` steps take at the present speed, with as much aside of them
        as so far; -1 before the first."""
        if not self._seconds:
            return -1.0
        step = sum(self._seconds) / len(self._seconds)
        return steps_left * (step + self._aside / self._steps)


# MERGED: Which checkpoint was best, by the metric that the specification names.


@dataclass
class Best:
    """The best value so far; ``step`` is 0 while there is none."""

    metric: MetricName
    value: float = 0.0
    step: int = 0

    def improved(self, metrics: dict[str, float], step: int) -> bool:
        """Takes the figures of an evaluation at ``step``; True if they are the best so far.

        Every figure is better the higher it is, but the loss.

        A later equal value does not replace an earlier one, and what is no number is never best.
        """
        value = metrics[self.metric]
        if math.isnan(value):
            return False
        better = value < self.value if self.metric == "loss" else value > self.value
        if self.step and not better:
            return False
        self.value, self.step = value, step
        return True


# MERGED: Writes a training job's checkpoints and says so.


@dataclass
class Saver:
    """Saves from rank 0; the other ranks only take part in averaging the statistics.

    Args:
        model_spec: with the number of classes filled in, as the manifest needs it.
        dataset: what is trained on; needed on rank 0.
    """

    ctx: WorkerContext
    spec: CheckpointSpec
    model_spec: ModelSpec
    labels: tuple[str, ...]
    model: nn.Cell
    step: TrainStep
    best: Best
    dataset: DatasetFingerprint | None = None
    last_saved: int = 0

    def due(self, step: int, epoch_end: int | None) -> bool:
        """Whether a checkpoint is due after ``step``, which ended epoch ``epoch_end`` (or none)."""
        by_steps = self.spec.every_steps > 0 and step % self.spec.every_steps == 0
        by_epochs = (
            epoch_end is not None
            and self.spec.every_epochs > 0
            and epoch_end % self.spec.every_epochs == 0
        )
        return by_steps or by_epochs

    def save(self, step: int, epoch: int, metrics: dict[str, float], *, is_best: bool) -> None:
        """Writes ``step-XXXXXXXX`` and removes what is older than the last ``keep``.

        Raises:
            MultigrainError: STORAGE when the disk is full or cannot be written.
        """
        self.last_saved = step
        self.step.sync_statistics()
        if self.ctx.rank != 0:
            return
        manifest = CheckpointManifest(
            step=step,
            epoch=epoch,
            model=self.model_spec,
            labels=self.labels,
            metrics=metrics,
            position={
                "best_metric": self.best.metric,
                "best_value": self.best.value,
                "best_step": self.best.step,
                "best": int(is_best),
            },
            job_id=self.ctx.request.job_id,
            create_time=datetime.now(UTC).isoformat(),
            dataset=self.dataset,
        )
        folder = self.ctx.folder.checkpoints
        record = store.save(folder, manifest, model_state(self.model), self.step.state())
        self.ctx.reporter.emit(record)
        protect = {self.best.step} if self.best.step else set()
        store.prune(folder, keep=self.spec.keep, protect=protect)


# MERGED: The training loop: batches in, loss events and checkpoints out.


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        step: optimizer steps already done (of a checkpoint), 0 for a new run.
        evaluated: whether figures were taken after that step.
    """

    step: int = 0
    evaluated: bool = False


@dataclass
class Trainer:
    """Runs the steps of one worker.

    Args:
        start: where the run begins.
        evaluate: figures of the present weights on the held-out images, or None if it was asked
            to stop; no function = never.
    """

    ctx: WorkerContext
    spec: TrainingSpec
    data: TrainingData
    step: TrainStep
    saver: Saver
    start: Start = Start()
    evaluate: Callable[[int, int], EvaluationRecord | None] | None = None

    def __post_init__(self) -> None:
        self._per_epoch = self.data.steps_per_epoch
        steps = self.spec.schedule.epochs * self._per_epoch
        limit = self.spec.schedule.max_steps
        self.total_steps = min(steps, limit) if limit else steps
        self._meter = Meter(self.spec.schedule.batch_size * self.ctx.world)
        self._told: set[str] = set()

    def run(self) -> Outcome:
        """Trains to the end, or until every worker has agreed to stop; saves in both cases."""
        done = self.start.step
        # Where the attempt before was stopped at an evaluation, that comes first.
        missed = done > 0 and not self.start.evaluated and self._evaluation_due(done)
        if missed and not self._after_step(done):
            return self._stop(done)
        while done < self.total_steps:
            epoch = done // self._per_epoch
            batches = self.data.epoch(epoch, first_step=done % self._per_epoch)
            for batch in self._meter.waiting(iter(batches)):
                result = self.step(
                    Tensor(batch.images),
                    Tensor(batch.labels),
                    Tensor(batch.instances),
                    stop=self.ctx.reporter.stop_requested,
                )
                done += 1
                self._report(result, done, epoch + 1)
                self._report_unreadable()
                stopped = result.stop_agreed and done < self.total_steps
                if stopped or not self._after_step(done):
                    return self._stop(done)
                if done >= self.total_steps:
                    break
        return Outcome(message=f"{done} steps done")

    def _epoch_of(self, done: int) -> int:
        return (done + self._per_epoch - 1) // self._per_epoch

    def _epoch_ended_at(self, done: int) -> int | None:
        return done // self._per_epoch if done % self._per_epoch == 0 else None

    def _stop(self, done: int) -> Outcome:
        if self.saver.last_saved != done:
            self.saver.save(done, self._epoch_of(done), {}, is_best=False)
        return Outcome(stopped=True, message=f"stopped after step {done} of {self.total_steps}")

    def _evaluation_due(self, done: int) -> bool:
        every = self.spec.evaluation.every_epochs
        if self.evaluate is None or not every:
            return False
        ended = self._epoch_ended_at(done)
        return done == self.total_steps or (ended is not None and ended % every == 0)

    def _after_step(self, done: int) -> bool:
        """Evaluates and saves if that is due. False if a stop was asked for meanwhile."""
        metrics: dict[str, float] = {}
        is_best = False
        epoch = self._epoch_of(done)
        if self.evaluate is not None and self._evaluation_due(done):
            self.step.sync_statistics()
            record = self.evaluate(done, epoch)
            if record is None:
                return False
            metrics = record.metrics
            is_best = self.saver.best.improved(metrics, done)
            if self.ctx.rank == 0:
                self.ctx.reporter.emit(record)
        last = done == self.total_steps
        if is_best or last or self.saver.due(done, self._epoch_ended_at(done)):
            self.saver.save(done, epoch, metrics, is_best=is_best)
        self._meter.aside_done()
        return True

    def _report(self, result: StepResult, done: int, epoch: int) -> None:
        seconds = self._meter.step_done()
        if self.ctx.rank != 0:
            self.ctx.reporter.alive()
            return
        self.ctx.reporter.emit(
            LossRecord(
                step=done,
                total_steps=self.total_steps,
                epoch=epoch,
                total_epochs=self.spec.schedule.epochs,
                loss=result.loss,
                classification_loss=result.classification_loss,
                instance_loss=result.instance_loss,
                learning_rate=result.learning_rate,
                damping=result.damping,
                images_per_second=self._meter.images_per_second,
                data_wait=self._meter.data_wait,
                refreshed_layers=result.refreshed_layers,
                kept_layers=result.kept_layers,
                stopped_layers=result.stopped_layers,
                curvature_layers=result.curvature_layers,
                eta_seconds=self._meter.eta_seconds(self.total_steps - done),
                skipped=result.skipped,
                skipped_because=result.skipped_because,
                skipped_total=result.skipped_total,
                loss_scale=result.loss_scale,
                beta=result.beta,
                gem_p=result.gem_p,
                step_seconds=seconds,
            )
        )

    def _report_unreadable(self) -> None:
        if len(self.data.unreadable) == len(self._told):
            return
        for path, reason in list(self.data.unreadable.items()):
            if path in self._told:
                continue
            self._told.add(path)
            self.ctx.reporter.emit(
                LogRecord(
                    level="WARNING",
                    message=f"skipped {path}: {reason}",
                    rank=self.ctx.rank,
                    fields={"path": path, "reason": reason, "unreadable": str(len(self._told))},
                )
            )
