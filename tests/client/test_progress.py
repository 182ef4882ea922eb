"""The progress of an evaluation on the displays of the command line."""

from __future__ import annotations

import io

from multigrain.v1 import job_pb2
from multigrain_client.cli.live import LiveDisplay
from multigrain_client.cli.output import Output, job_lines
from multigrain_client.cli.progress import LineDisplay
from tests.client.events import job_of


def progress_event(seq: int, done: int, total: int = 1000) -> job_pb2.JobEvent:
    event = job_pb2.JobEvent(seq=seq, job_id="job-1", attempt=1)
    event.time.FromJsonString("2026-01-31T12:00:00Z")
    event.progress.CopyFrom(job_pb2.ProgressEvent(done=done, total=total, eta_seconds=62))
    return event


def evaluation() -> job_pb2.Job:
    return job_of("job-1", kind=job_pb2.JOB_KIND_EVALUATION)


def test_lines_are_written_for_twentieths_only() -> None:
    stream = io.StringIO()
    display = LineDisplay(Output(stream, as_json=False), evaluation())
    for done in (10, 40, 60, 80, 109, 115, 500, 510, 20, 30):
        display.event(progress_event(1, done))
    lines = [line.partition("progress  ")[2] for line in stream.getvalue().splitlines()[1:]]
    # 20: of the next attempt, which begins anew.
    assert lines == [f"{done} of 1000 images  eta 1 min 2 s" for done in (60, 115, 500, 20)]


def test_the_live_bar_moves_and_nothing_scrolls_by() -> None:
    stream = io.StringIO()
    with LiveDisplay(stream, evaluation()) as display:
        for done in (100, 200, 400):
            display.event(progress_event(1, done))
    text = stream.getvalue()
    assert "40%" in text
    assert "1 min 2 s left" in text
    assert "images" not in text


def test_a_job_tells_how_many_of_its_images_are_done() -> None:
    job = evaluation()
    job.progress.step, job.progress.total_steps = 60, 120
    assert "progress    60 of 120 images" in job_lines(job)
