"""Progress of an evaluation."""

from __future__ import annotations

import pytest

from multigrain.evaluate.evaluator import EvaluationProgress
from multigrain.events.records import ProgressRecord
from tests.evaluate.context import RecordingReporter

pytestmark = pytest.mark.mindspore


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_at_most_one_record_per_second_and_a_heartbeat_every_time() -> None:
    reporter, clock = RecordingReporter(), Clock()
    progress = EvaluationProgress(reporter, images=101, shard=51, passes=2, clock=clock)
    for done in range(1, 52):
        clock.now += 0.125
        progress.done(done)
    progress.next_pass()
    clock.now += 0.125
    progress.done(1)
    assert reporter.alive_calls == 52
    records = [record for record in reporter.records if isinstance(record, ProgressRecord)]
    assert len(records) == 6
    # Extrapolated from rank 0: 8 of its 2 x 51 forward passes are 8 of 101 images.
    assert records[0].done == round(8 / 102 * 101)
    assert records[0].eta_seconds == pytest.approx(1.0 * 94 / 8)
    assert {record.total for record in records} == {101}
    assert [record.done for record in records] == sorted(record.done for record in records)
    clock.now += 10
    progress.done(51)
    assert isinstance(last := reporter.records[-1], ProgressRecord)
    assert (last.done, last.eta_seconds) == (101, 0.0)


def test_only_rank_0_emits_records() -> None:
    reporter, clock = RecordingReporter(), Clock()
    progress = EvaluationProgress(reporter, images=10, shard=5, passes=1, rank=1, clock=clock)
    clock.now += 5
    progress.done(1)
    assert (reporter.records, reporter.alive_calls) == ([], 1)
