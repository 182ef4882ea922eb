"""Jobs and events for tests."""

from __future__ import annotations

from multigrain.v1 import job_pb2


def job_of(
    job_id: str,
    *,
    state: int = job_pb2.JOB_STATE_RUNNING,
    kind: int = job_pb2.JOB_KIND_TRAINING,
) -> job_pb2.Job:
    return job_pb2.Job(job_id=job_id, state=state, kind=kind, attempt=1)


def loss_event(seq: int, step: int, loss: float = 1.0, attempt: int = 1) -> job_pb2.JobEvent:
    event = job_pb2.JobEvent(seq=seq, job_id="job-1", attempt=attempt)
    event.time.FromJsonString("2026-01-31T12:00:00.5Z")
    event.loss.CopyFrom(
        job_pb2.LossEvent(
            step=step,
            total_steps=10,
            epoch=1,
            total_epochs=2,
            loss=loss,
            classification_loss=2 * loss,
            instance_loss=0.5,
            learning_rate=0.01,
            damping=0.03,
            images_per_second=123.4,
            eta_seconds=61,
        )
    )
    return event


def state_event(seq: int, state: int, message: str = "") -> job_pb2.JobEvent:
    event = job_pb2.JobEvent(seq=seq, job_id="job-1", attempt=1)
    event.time.FromJsonString("2026-01-31T12:00:00Z")
    event.state.state = state
    event.state.message = message
    return event


def training_events(steps: int) -> list[job_pb2.JobEvent]:
    """RUNNING, so many loss points, SUCCEEDED."""
    losses = [loss_event(seq=step + 1, step=step, loss=1 / step) for step in range(1, steps + 1)]
    return [
        state_event(1, job_pb2.JOB_STATE_RUNNING),
        *losses,
        state_event(steps + 2, job_pb2.JOB_STATE_SUCCEEDED),
    ]
