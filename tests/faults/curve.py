"""What a loss curve must look like, whatever happened to the processes that drew it."""

from __future__ import annotations

from pathlib import Path

from multigrain.events.log import Event
from multigrain.events.records import JobState, LossRecord
from tests.faults import work
from tests.jobs.harness import Job

ROOT = Path(__file__).parents[2]


def assert_whole_curve(events: list[Event], steps: int) -> None:
    """One point for each step (the newest attempt's counts), each as of an undisturbed run, and
    no step twice in one attempt."""
    points = [(e.attempt, e.record) for e in events if isinstance(e.record, LossRecord)]
    keys = [(attempt, record.step) for attempt, record in points]
    assert len(set(keys)) == len(keys), "a step is reported twice within an attempt"
    newest = {record.step: record.loss for _, record in points}
    assert [newest[step] for step in sorted(newest)] == work.losses(steps)


def assert_numbered(events: list[Event]) -> None:
    """``seq`` is 1, 2, 3, ..."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def wait_until_running(job: Job, attempt: int) -> None:
    """Until every worker of an attempt is there: rank 0 makes steps without the others."""
    job.wait_for(
        lambda: any(
            event.attempt == attempt and getattr(event.record, "state", None) is JobState.RUNNING
            for event in job.events()
        ),
        timeout=60,
    )
