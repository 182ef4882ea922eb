"""The training loop: steps, loss events, scheduled evaluations and checkpoints."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from mindspore import Tensor, nn

from multigrain.checkpoint import store
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.data.fingerprint import DatasetFingerprint
from multigrain.data.pipeline import TrainingData
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.results import keep_best
from multigrain.events.records import EvaluationRecord, LogRecord, LossRecord
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.model.state import model_state
from multigrain.specs.evaluation import MetricName
from multigrain.specs.training import CheckpointSpec, ModelSpec, TrainingSpec
from multigrain.text import printable, stored_path
from multigrain.train.step import TrainStep

T = TypeVar("T")


@dataclass(frozen=True)
class StartPoint:
    """Where a training run begins.

    Attributes:
        step: optimizer steps already done according to the checkpoint; 0 for a new run.
        evaluated: whether the evaluation scheduled after that step was done.
    """

    step: int = 0
    evaluated: bool = False


@dataclass
class Trainer:
    """Runs the steps of one worker.

    Args:
        ctx: this worker's rank, folders and reporter.
        spec: the training run.
        data: this worker's batches.
        step: the training step.
        saver: writes the checkpoints.
        start: where the run begins.
        evaluate: (step, epoch) -> metrics of the present weights, or None if the evaluation was
            interrupted by a stop request. None: no evaluation is scheduled.
    """

    ctx: WorkerContext
    spec: TrainingSpec
    data: TrainingData
    step: TrainStep
    saver: CheckpointSaver
    start: StartPoint = StartPoint()
    evaluate: Callable[[int, int], EvaluationRecord | None] | None = None

    def __post_init__(self) -> None:
        self._steps_per_epoch = self.data.steps_per_epoch
        steps = self.spec.schedule.epochs * self._steps_per_epoch
        limit = self.spec.schedule.max_steps
        self.total_steps = min(steps, limit) if limit else steps
        self._meter = ThroughputMeter(self.spec.schedule.batch_size * self.ctx.world)
        self._reported_unreadable: set[str] = set()

    def run(self) -> Outcome:
        """Trains to the end, or until all workers have agreed to stop; saves in both cases.

        Raises:
            MultigrainError: DATASET, DIVERGED or STORAGE.
        """
        done = self.start.step
        # The previous attempt may have been stopped in the evaluation after its last step.
        pending = done > 0 and not self.start.evaluated and self._evaluation_due(done)
        if pending and not self._after_step(done):
            return self._stop(done)
        if self._patience_is_over(done):
            return self._end_early(done)
        if self.ctx.rank == 0 and done < self.total_steps:
            message = "compiling the training step; the first steps take longer than the others"
            self.ctx.reporter.emit(LogRecord("INFO", message, self.ctx.rank))
        while done < self.total_steps:
            epoch = done // self._steps_per_epoch
            batches = self.data.epoch(epoch, first_step=done % self._steps_per_epoch)
            for batch in self._meter.time_waiting(iter(batches)):
                record = self.step(
                    Tensor(batch.images),
                    Tensor(batch.labels),
                    Tensor(batch.instances),
                    stop=self.ctx.reporter.stop_requested,
                )
                done += 1
                self._report(record, done, epoch + 1)
                self._report_unreadable()
                stopped = done < self.total_steps and self._stop_agreed()
                if stopped or not self._after_step(done):
                    return self._stop(done)
                if self._patience_is_over(done):
                    return self._end_early(done)
                if done >= self.total_steps:
                    break
        return Outcome(message=f"{done} steps done")

    def _epoch_of(self, done: int) -> int:
        return (done + self._steps_per_epoch - 1) // self._steps_per_epoch

    def _epoch_ended_at(self, done: int) -> int | None:
        return done // self._steps_per_epoch if done % self._steps_per_epoch == 0 else None

    def _stop_agreed(self) -> bool:
        """Returns whether all workers stop after the latest step, the same on all. Collective.

        A step agrees on what was requested before it began. While it compiled, minutes may have
        passed, and the next step may compile as well: then the workers ask once more.
        """
        if self.step.stop_agreed or not self.step.compiled:
            return self.step.stop_agreed
        return AllReduce(self.ctx.world).any(self.ctx.reporter.stop_requested)

    def _stop(self, done: int) -> Outcome:
        if self.saver.last_saved != done:
            self.saver.save(done, self._epoch_of(done), {}, is_best=False)
        return Outcome(stopped=True, message=f"stopped after step {done} of {self.total_steps}")

    def _patience_is_over(self, done: int) -> bool:
        """Whether so many evaluations in a row gave no new best; the same on all workers."""
        patience, best = self.spec.evaluation.patience, self.saver.best.step
        if not patience or not best or not self._evaluation_due(done) or done == self.total_steps:
            return False
        every = self.spec.evaluation.every_epochs
        return (self._epoch_of(done) - self._epoch_of(best)) // every >= patience

    def _end_early(self, done: int) -> Outcome:
        evaluation, best = self.spec.evaluation, self.saver.best
        message = (
            f"ended early after step {done} of {self.total_steps}: no better {evaluation.metric} "
            f"than {best.value:.4g} of step {best.step} in {evaluation.patience} evaluations"
        )
        if self.ctx.rank == 0:
            self.ctx.reporter.emit(LogRecord("INFO", message, self.ctx.rank))
        return Outcome(message=message)

    def _evaluation_due(self, done: int) -> bool:
        every = self.spec.evaluation.every_epochs
        if self.evaluate is None or not every:
            return False
        ended = self._epoch_ended_at(done)
        return done == self.total_steps or (ended is not None and ended % every == 0)

    def _after_step(self, done: int) -> bool:
        """Evaluates and saves if due. Returns False if a stop was requested meanwhile."""
        metrics: dict[str, float] = {}
        is_best = False
        epoch = self._epoch_of(done)
        if self.evaluate is not None and self._evaluation_due(done):
            self.step.sync_statistics()
            record = self.evaluate(done, epoch)
            if record is None:
                return False
            metrics = record.metrics
            is_best = self.saver.best.update(metrics, done)
            if self.ctx.rank == 0:
                if is_best:
                    self._keep_best()
                self.ctx.reporter.emit(record)
        last = done == self.total_steps or self._patience_is_over(done)
        if is_best or last or self.saver.due(done, self._epoch_ended_at(done)):
            self.saver.save(done, epoch, metrics, is_best=is_best)
        self._meter.exclude()
        return True

    def _keep_best(self) -> None:
        """Copies the results of the evaluation, which the next one replaces."""
        try:
            keep_best(self.ctx.folder.results)
        except OSError as error:
            message = f"the results of the best evaluation cannot be kept: {error.strerror}"
            self.ctx.reporter.emit(LogRecord("WARNING", message, self.ctx.rank))

    def _report(self, record: LossRecord, done: int, epoch: int) -> None:
        """Emits a step's loss event from rank 0, and a heartbeat from the other ranks."""
        seconds = self._meter.step_done(compiled=self.step.compiled)
        if self.ctx.rank != 0:
            self.ctx.reporter.alive()
            return
        self.ctx.reporter.emit(
            replace(
                record,
                step=done,
                total_steps=self.total_steps,
                epoch=epoch,
                total_epochs=self.spec.schedule.epochs,
                images_per_second=self._meter.images_per_second,
                data_wait=self._meter.data_wait,
                eta_seconds=self._meter.eta_seconds(self.total_steps - done),
                step_seconds=seconds,
                compiled=self.step.compiled,
            )
        )

    def _report_unreadable(self) -> None:
        """Logs each file that was skipped as unreadable, once."""
        reported = self._reported_unreadable
        if len(self.data.unreadable) == len(reported):
            return
        for path, reason in list(self.data.unreadable.items()):
            if path in reported:
                continue
            reported.add(path)
            self.ctx.reporter.emit(
                LogRecord(
                    level="WARNING",
                    message=f"skipped {printable(path)}: {reason}",
                    rank=self.ctx.rank,
                    fields={
                        "path": stored_path(path),
                        "reason": reason,
                        "unreadable": str(len(reported)),
                    },
                )
            )


class ThroughputMeter:
    """Measures the throughput of one worker's training steps.

    Rates are means over the latest ``window`` steps. Steps that compiled a graph are left out as
    soon as there is another one; until then there is no estimate of the time left.

    Args:
        images_per_step: images of one step over all workers.
        window: number of steps that the means cover.
    """

    def __init__(self, images_per_step: int, window: int = 50) -> None:
        self._images = images_per_step
        self._seconds: deque[float] = deque(maxlen=window)
        self._waits: deque[float] = deque(maxlen=window)
        self._steps = 0
        self._compiling = True
        self._wait = 0.0
        self._excluded = 0.0
        self._last = time.monotonic()

    def time_waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """Yields the batches; the time it takes to get each counts as data wait."""
        while True:
            begin = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._wait += time.monotonic() - begin
            yield batch

    def step_done(self, *, compiled: bool) -> float:
        """Ends the step that began when the previous one ended; returns its duration (s).

        Args:
            compiled: whether the step compiled a graph.
        """
        now = time.monotonic()
        seconds = now - self._last
        if self._compiling and not compiled:
            self._compiling = False
            self._seconds.clear()
            self._waits.clear()
        if self._compiling or not compiled:
            self._seconds.append(seconds)
            self._waits.append(min(self._wait, seconds))
        self._steps += 1
        self._last = now
        self._wait = 0.0
        return seconds

    def exclude(self) -> None:
        """Excludes the time since the latest step (an evaluation, a save) from the next step."""
        now = time.monotonic()
        self._excluded += now - self._last
        self._last = now

    @property
    def images_per_second(self) -> float:
        """Images per second over all workers."""
        total = sum(self._seconds)
        return self._images * len(self._seconds) / total if total > 0 else 0.0

    @property
    def data_wait(self) -> float:
        """Fraction of the step time spent waiting for data, 0 to 1."""
        total = sum(self._seconds)
        return sum(self._waits) / total if total > 0 else 0.0

    def eta_seconds(self, steps_left: int) -> float:
        """Estimated seconds for ``steps_left`` steps; -1 before a step without compilation.

        Assumes the present speed, and as much excluded time per step as so far.
        """
        if self._compiling:
            return 0.0 if steps_left == 0 else -1.0
        step = sum(self._seconds) / len(self._seconds)
        return steps_left * (step + self._excluded / self._steps)


@dataclass
class BestCheckpoint:
    """The step with the best value of a metric so far; ``step`` is 0 while there is none."""

    metric: MetricName
    value: float = 0.0
    step: int = 0

    def update(self, metrics: dict[str, float], step: int) -> bool:
        """Takes the metrics of an evaluation at ``step``; returns whether it is the new best.

        Lower is better for the loss, higher for every other metric. An equal value does not
        replace an earlier one, and NaN is never the best.
        """
        value = metrics[self.metric]
        if math.isnan(value):
            return False
        better = value < self.value if self.metric == "loss" else value > self.value
        if self.step and not better:
            return False
        self.value, self.step = value, step
        return True


@dataclass
class CheckpointSaver:
    """Writes a training job's checkpoints.

    Rank 0 writes; the other ranks only take part in averaging BatchNorm's statistics.

    Args:
        ctx: this worker's rank, folders and reporter.
        spec: when to save, and how many checkpoints to keep.
        model_spec: the network, with its number of classes filled in.
        labels: class names.
        model: the network.
        step: the training step, whose state is saved too.
        best: the best checkpoint so far.
        dataset: fingerprint of the training set; required on rank 0.
        last_saved: step of the newest checkpoint.
    """

    ctx: WorkerContext
    spec: CheckpointSpec
    model_spec: ModelSpec
    labels: tuple[str, ...]
    model: nn.Cell
    step: TrainStep
    best: BestCheckpoint
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
        """Writes ``step-XXXXXXXX`` and prunes all but the last ``keep``. Collective.

        Raises:
            MultigrainError: STORAGE, if the disk is full or cannot be written.
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
