"""The training loop: batches in, loss events and checkpoints out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mindspore import Tensor

from multigrain.data.pipeline import TrainingData
from multigrain.events.records import EvaluationRecord, LogRecord, LossRecord
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.spec.training import TrainingSpec
from multigrain.train.meter import Meter
from multigrain.train.saver import Saver
from multigrain.train.step import StepResult, TrainStep


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        step: optimiser steps already done (of a checkpoint), 0 for a new run.
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
