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


@dataclass
class Trainer:
    """Runs the steps of one worker.

    Args:
        start: optimiser steps already done (of a checkpoint), 0 for a new run.
        evaluate: figures of the present weights on the held-out images; None = never.
    """

    ctx: WorkerContext
    spec: TrainingSpec
    data: TrainingData
    step: TrainStep
    saver: Saver
    start: int = 0
    evaluate: Callable[[int, int], EvaluationRecord] | None = None

    def __post_init__(self) -> None:
        self._per_epoch = self.data.steps_per_epoch
        steps = self.spec.schedule.epochs * self._per_epoch
        limit = self.spec.schedule.max_steps
        self.total_steps = min(steps, limit) if limit else steps
        self._meter = Meter(self.spec.schedule.batch_size * self.ctx.world)
        self._told: set[str] = set()

    def run(self) -> Outcome:
        """Trains to the end, or until every worker has agreed to stop; saves in both cases."""
        done = self.start
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
                ended = epoch + 1 if done % self._per_epoch == 0 else None
                self._after_step(done, epoch + 1, ended)
                if done >= self.total_steps:
                    break
                if result.stop_agreed:
                    return self._stop(done, epoch + 1)
        if self.saver.last_saved != done and done > self.start:
            self.saver.save(done, self._epoch_of(done), {}, is_best=False)
        return Outcome(message=f"{done} steps done")

    def _epoch_of(self, done: int) -> int:
        return (done + self._per_epoch - 1) // self._per_epoch

    def _stop(self, done: int, epoch: int) -> Outcome:
        if self.saver.last_saved != done:
            self.saver.save(done, epoch, {}, is_best=False)
        return Outcome(stopped=True, message=f"stopped after step {done} of {self.total_steps}")

    def _after_step(self, done: int, epoch: int, ended: int | None) -> None:
        every = self.spec.evaluation.every_epochs
        last = done == self.total_steps
        metrics: dict[str, float] = {}
        is_best = False
        due = every and (last or (ended is not None and ended % every == 0))
        if self.evaluate is not None and due:
            self.step.sync_statistics()
            record = self.evaluate(done, epoch)
            metrics = record.metrics
            is_best = self.saver.best.improved(metrics, done)
            if self.ctx.rank == 0:
                self.ctx.reporter.emit(record)
        if is_best or last or self.saver.due(done, ended):
            self.saver.save(done, epoch, metrics, is_best=is_best)

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
                curvature_layers=result.curvature_layers,
                eta_seconds=self._meter.eta_seconds(self.total_steps - done),
                skipped=result.skipped,
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
