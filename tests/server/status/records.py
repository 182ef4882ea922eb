"""Jobs and their records, as text fills them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from multigrain.events.records import (
    ArtifactRecord,
    CheckpointRecord,
    JobError,
    JobState,
    LossRecord,
)
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.training import TrainingSpec
from multigrain_server.jobs.job import Job, JobView, Progress

TIME = "2026-01-31T12:00:00.123456Z"


def line(seq: int, attempt: int = 1, **record: Any) -> str:
    """A line of events.jsonl, as its writer lays it out."""
    head = {"seq": seq, "time": TIME, "job_id": "train-1", "attempt": attempt}
    return json.dumps({**head, **record}, separators=(",", ":")) + "\n"


def loss(step: int, total: Any = 1.0, **terms: Any) -> dict[str, Any]:
    return {
        "step": step,
        "total_steps": 1000,
        "epoch": 1,
        "total_epochs": 2,
        "loss": total,
        "classification_loss": total,
        "instance_loss": total,
        "learning_rate": 0.1,
        **terms,
    }


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(lines))
    return path


def job(text: str, state: JobState = JobState.FAILED) -> Job:
    """A job that says ``text`` wherever a client, a file or a library may have a say."""
    request = JobRequest(
        job_id="train-1",
        kind=JobKind.TRAINING,
        name=text,
        labels={text: text},
        create_time=TIME,
        training=TrainingSpec(),
    )
    ended = state.terminal
    view = JobView(
        state=state,
        state_message=text,
        attempt=2,
        queued_time=TIME,
        start_time=TIME,
        end_time=TIME if ended else "",
        exit_code=1 if ended else None,
        error=JobError(text, text, rank=1, log_tail=text) if state is JobState.FAILED else None,
        progress=Progress(500, 1000, 1, 2, 0.5, 60.0),
        last_checkpoint=CheckpointRecord(500, 1, text, 1 << 20),
        checkpoint_time=TIME,
        best_checkpoint=CheckpointRecord(400, 1, text, 1 << 20, best=True),
        last_loss=LossRecord(500, 1000, 1, 2, 0.5, 0.25, 0.25, 0.1, images_per_second=2500),
        metrics={text: 0.5},
        artifact=ArtifactRecord(text, 3),
    )
    return Job(request, view)
