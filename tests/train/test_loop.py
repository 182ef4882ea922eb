"""The training loop: order of steps, evaluations, checkpoints and stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from multigrain.checkpoint import store
from multigrain.events.records import EvaluationRecord, LogRecord, LossRecord, Record
from multigrain.jobs.context import Outcome
from multigrain.jobs.job_folder import JobFolder
from multigrain.specs.training import TrainingSpec
from multigrain.train import loop
from multigrain.train.loop import BestCheckpoint, StartPoint, Trainer
from multigrain.train.loop import CheckpointSaver as RealSaver
from tests.train.tiny import tiny_model

pytestmark = pytest.mark.mindspore

PER_EPOCH = 3


class Reporter:
    """Requests a stop from the ``stop_at``-th query on."""

    def __init__(self, stop_at: int = 10**9) -> None:
        self.records: list[Record] = []
        self.looks, self._stop_at = 0, stop_at

    def emit(self, record: Record) -> None:
        self.records.append(record)

    def alive(self) -> None:
        pass

    @property
    def stop_requested(self) -> bool:
        self.looks += 1
        return self.looks >= self._stop_at


class Data:
    steps_per_epoch = PER_EPOCH
    unreadable: tuple[str, ...] = ()

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Any]:
        zero = np.zeros(1, np.float32)
        for _ in range(first_step, PER_EPOCH):
            yield SimpleNamespace(images=zero, labels=zero, instances=zero)


class Step:
    """Agrees to stop at once; records when statistics are averaged."""

    def __init__(self, order: list[str] | None = None) -> None:
        self.order = order if order is not None else []

    def __call__(self, *_arrays: object, stop: bool) -> LossRecord:
        self.stop_agreed = stop
        self.compiled = False
        return LossRecord(
            0, 0, 0, 0, loss=1.0, classification_loss=1.0, instance_loss=1.0, learning_rate=0.1
        )

    def sync_statistics(self) -> None:
        self.order.append("averaged")


class Saver:
    """Records (step, whether evaluated, best)."""

    def __init__(self, last_saved: int = 0) -> None:
        self.best = BestCheckpoint("top1")
        self.last_saved = last_saved
        self.saved: list[tuple[int, bool, bool]] = []

    def due(self, step: int, epoch_end: int | None) -> bool:
        return epoch_end is not None

    def save(self, step: int, epoch: int, metrics: dict[str, float], *, is_best: bool) -> None:
        assert epoch == -(-step // PER_EPOCH)
        self.last_saved = step
        self.saved.append((step, bool(metrics), is_best))


def train(
    saver: Saver,
    evaluate: Callable[[int, int], EvaluationRecord | None],
    *,
    reporter: Reporter | None = None,
    start: StartPoint | None = None,
    step: Step | None = None,
    data: Data | None = None,
    max_steps: int = 0,
    every: int = 1,
    epochs: int = 2,
    patience: int = 0,
) -> Outcome:
    spec = TrainingSpec.model_validate(
        {
            "schedule": {"epochs": epochs, "max_steps": max_steps},
            "evaluation": {"every_epochs": every, "patience": patience},
        }
    )
    folder = JobFolder(Path("absent"))
    context = SimpleNamespace(reporter=reporter or Reporter(), rank=0, world=1, folder=folder)
    fakes: Any = (
        context,
        spec,
        data or Data(),
        step or Step(),
        saver,
        start or StartPoint(),
        evaluate,
    )
    return Trainer(*fakes).run()


def figures(step: int, epoch: int) -> EvaluationRecord:
    return EvaluationRecord({"top1": step / 10}, step=step, epoch=epoch)


def test_each_epoch_is_evaluated_then_saved() -> None:
    saver = Saver()
    outcome = train(saver, figures)
    assert saver.saved == [(3, True, True), (6, True, True)]
    assert (outcome.stopped, outcome.message) == (False, "6 steps done")


def test_a_loss_has_the_place_in_the_run_and_the_times_of_its_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now))

    class SlowData(Data):
        def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Any]:
            for batch in super().epoch(epoch, first_step):
                clock.now += 1
                yield batch

    class SlowStep(Step):
        def __call__(self, *arrays: object, stop: bool) -> LossRecord:
            clock.now += 3
            return super().__call__(*arrays, stop=stop)

    reporter = Reporter()
    train(Saver(), figures, reporter=reporter, step=SlowStep(), data=SlowData())
    losses = [record for record in reporter.records if isinstance(record, LossRecord)]
    rate = TrainingSpec().schedule.batch_size / 4
    assert losses == [
        LossRecord(
            step=step,
            total_steps=6,
            epoch=-(-step // PER_EPOCH),
            total_epochs=2,
            loss=1.0,
            classification_loss=1.0,
            instance_loss=1.0,
            learning_rate=0.1,
            images_per_second=rate,
            data_wait=0.25,
            eta_seconds=4.0 * (6 - step),
            step_seconds=4.0,
        )
        for step in range(1, 7)
    ]


@pytest.mark.parametrize(
    ("max_steps", "every", "saved"),
    [
        (5, 1, [(3, True, True), (5, True, True)]),
        (0, 2, [(3, False, False), (6, True, True)]),
        (0, 5, [(3, False, False), (6, True, True)]),
    ],
)
def test_the_last_step_is_always_evaluated_and_saved(
    max_steps: int, every: int, saved: list[tuple[int, bool, bool]]
) -> None:
    saver = Saver()
    train(saver, figures, max_steps=max_steps, every=every)
    assert saver.saved == saved


def test_a_stop_requested_while_a_step_compiled_does_not_wait_for_the_next_step() -> None:
    class CompilingStep(Step):
        def __call__(self, *arrays: object, stop: bool) -> LossRecord:
            record = super().__call__(*arrays, stop=stop)
            self.compiled = True
            return record

    saver = Saver()
    outcome = train(saver, figures, reporter=Reporter(stop_at=2), step=CompilingStep())
    assert (outcome.stopped, outcome.message) == (True, "stopped after step 1 of 6")
    assert saver.saved == [(1, False, False)]


def test_statistics_are_averaged_before_an_evaluation() -> None:
    order: list[str] = []

    def evaluate(step: int, epoch: int) -> EvaluationRecord:
        order.append("evaluated")
        return figures(step, epoch)

    train(Saver(), evaluate, step=Step(order))
    assert order == ["averaged", "evaluated"] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_every_worker_averages_statistics_when_rank_0_saves(tmp_path: Path, rank: int) -> None:
    """Averaging is collective: rank 0 alone would wait forever."""
    model, order = tiny_model(), list[str]()
    step: Any = Step(order)
    step.state = dict
    context: Any = SimpleNamespace(
        reporter=Reporter(), rank=rank, world=2, folder=JobFolder(tmp_path),
        request=SimpleNamespace(job_id="job"),
    )  # fmt: skip
    spec = TrainingSpec()
    saver = RealSaver(
        context, spec.checkpointing, spec.model, ("a",), model, step, BestCheckpoint("top1")
    )
    saver.save(3, 1, {}, is_best=False)
    assert order == ["averaged"]
    assert len(store.steps(JobFolder(tmp_path).checkpoints)) == (1 if rank == 0 else 0)


def test_a_stop_saves_the_current_step() -> None:
    saver = Saver()
    outcome = train(saver, figures, reporter=Reporter(stop_at=2))
    assert saver.saved == [(2, False, False)]
    assert outcome.stopped


def test_a_stop_during_an_evaluation_saves_at_once() -> None:
    saver = Saver()
    outcome = train(saver, lambda _step, _epoch: None)
    assert saver.saved == [(3, False, False)]
    assert outcome.stopped


def test_a_stop_at_the_end_of_an_epoch_skips_its_evaluation() -> None:
    saver, evaluated = Saver(), []

    def evaluate(step: int, epoch: int) -> EvaluationRecord:
        evaluated.append(step)
        return figures(step, epoch)

    assert train(saver, evaluate, reporter=Reporter(stop_at=3)).stopped
    assert (saver.saved, evaluated) == ([(3, False, False)], [])


def test_a_resumed_run_repeats_an_interrupted_evaluation() -> None:
    for step in (3, 6):
        saver, reporter = Saver(last_saved=step), Reporter()
        outcome = train(saver, figures, reporter=reporter, start=StartPoint(step))
        assert not outcome.stopped
        assert saver.saved[0] == (step, True, True)
        first = reporter.records[0]
        assert isinstance(first, EvaluationRecord)
        assert (first.step, first.epoch) == (step, step // 3)


def test_a_run_resumed_from_an_evaluated_checkpoint_continues_with_the_next_step() -> None:
    saver = Saver(last_saved=3)
    train(saver, figures, start=StartPoint(3, evaluated=True))
    assert saver.saved == [(6, True, True)]
    saver = Saver(last_saved=6)
    assert train(saver, figures, start=StartPoint(6, evaluated=True)).message == "6 steps done"
    assert saver.saved == []


@pytest.mark.parametrize(("every", "last"), [(1, 12), (2, 18)])
def test_it_ends_after_evaluations_without_a_better_value(every: int, last: int) -> None:
    """The second one is the best; two more do not reach it."""
    values = iter([0.5, 0.7, 0.7, 0.6, 0.9] if every == 1 else [0.5, 0.5, 0.5, 0.9])
    saver, reporter = Saver(), Reporter()

    def evaluate(step: int, epoch: int) -> EvaluationRecord:
        return EvaluationRecord({"top1": next(values)}, step=step, epoch=epoch)

    outcome = train(saver, evaluate, reporter=reporter, epochs=20, every=every, patience=2)
    assert not outcome.stopped
    assert f"ended early after step {last} of 60" in outcome.message
    assert saver.last_saved == last
    logged = [record for record in reporter.records if isinstance(record, LogRecord)]
    assert outcome.message in [record.message for record in logged]
    # Another attempt at this point ends at once.
    resumed = train(
        saver, evaluate, epochs=20, every=every, patience=2,
        start=StartPoint(step=last, evaluated=True),
    )  # fmt: skip
    assert resumed.message == outcome.message


def test_without_patience_it_trains_to_the_end() -> None:
    worse = EvaluationRecord({"top1": 0.1}, step=0, epoch=0)
    assert train(Saver(), lambda *_: worse, epochs=5).message == "15 steps done"
