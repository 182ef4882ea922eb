"""A runner that only writes events, with the lock, the files and the signals of the real one.

Labels of the job control it: ``events`` (total number of losses), ``pause`` (seconds between
them), ``end`` (SUCCEEDED, FAILED, or "crash": exit code 3 without a terminal state), ``crash_at``
(exit code 3 after this loss in the first attempt), ``crash_each`` (after every loss), ``mute``
(exit code 3 before the first event).
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from multigrain.events.log import EventWriter, LockHeldError, read_events
from multigrain.events.records import JobError, JobState, LossRecord, StateRecord
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobRequest
from multigrain.jobs.runner_identity import RunnerIdentity


def loss(step: int, total: int) -> LossRecord:
    """A loss; the first step is a check of the curvature."""
    return LossRecord(
        step=step,
        total_steps=total,
        epoch=1,
        total_epochs=1,
        loss=1.0 / step,
        classification_loss=0.5 / step,
        instance_loss=0.25 / step,
        learning_rate=0.1,
        images_per_second=100.0,
        refreshed_layers=17 if step == 1 else 0,
        kept_layers=37 if step == 1 else 0,
        stopped_layers=7,
        curvature_layers=54,
    )


def run(folder: JobFolder) -> int:
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    labels = JobRequest.load(folder.spec).labels
    total, pause = int(labels.get("events", "5")), float(labels.get("pause", "0"))
    if "mute" in labels:
        print("mute", flush=True)
        return 3
    try:
        writer = EventWriter(folder.events, folder.job_id)
    except LockHeldError:
        return 0
    with writer:
        RunnerIdentity.of_this_process().save(folder.runner)
        past = list(read_events(folder.events))
        states = [e.record.state for e in past if isinstance(e.record, StateRecord)]
        if states[-1].terminal:
            return 0
        attempt = states.count(JobState.STARTING) + 1
        done = sum(isinstance(event.record, LossRecord) for event in past)
        writer.append(StateRecord(JobState.STARTING), attempt)
        writer.append(StateRecord(JobState.RUNNING), attempt)
        for step in range(done + 1, total + 1):
            writer.append(loss(step, total), attempt)
            if attempt == 1 and str(step) == labels.get("crash_at"):
                return 3
            if "crash_each" in labels:
                return 3
            if stop:
                writer.append(StateRecord(JobState.STOPPING), attempt)
                writer.append(StateRecord(JobState.CANCELLED, "stopped"), attempt)
                return 0
            time.sleep(pause)
        match labels.get("end", "SUCCEEDED"):
            case "crash":
                return 3
            case "FAILED":
                error = JobError("DIVERGED", "the loss is non-finite", rank=1)
                writer.append(StateRecord(JobState.FAILED, "diverged", error, exit_code=1), attempt)
            case _:
                writer.append(StateRecord(JobState.SUCCEEDED, exit_code=0), attempt)
    return 0


if __name__ == "__main__":
    sys.exit(run(JobFolder(Path(sys.argv[1]))))
