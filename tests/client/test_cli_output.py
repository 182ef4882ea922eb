"""Text output and progress displays of the command line."""

from __future__ import annotations

import io

import pytest

from multigrain.v1 import job_pb2
from multigrain_client.cli.live import LiveDisplay, block_curve
from multigrain_client.cli.output import Output, duration, event_lines, job_lines
from multigrain_client.cli.progress import LineDisplay
from tests.client.events import job_of, loss_event


@pytest.mark.parametrize(
    ("refreshed", "kept", "stopped", "text"),
    [
        (54, 0, 0, "  curvature refreshed: 54 of 54  "),
        (17, 30, 7, "  curvature refreshed: 17 of 54, 7 stopped  "),
        (0, 50, 4, "  curvature refreshed: 0 of 54, 4 stopped  "),
    ],
)
def test_curvature_check_is_shown(refreshed: int, kept: int, stopped: int, text: str) -> None:
    event = loss_event(1, 1)
    event.loss.curvature_layers = 54
    event.loss.refreshed_layers, event.loss.kept_layers = refreshed, kept
    event.loss.stopped_layers = stopped
    assert text in event_lines(event)[0]


def test_long_info_message_is_one_line_and_long_warning_is_complete() -> None:
    log = job_pb2.LogEvent(level=job_pb2.LogEvent.LEVEL_INFO, message="2 layers\nconv1\nconv2")
    (line,) = event_lines(job_pb2.JobEvent(log=log))
    assert line.endswith(": 2 layers (2 more lines with --json)")
    log.level = job_pb2.LogEvent.LEVEL_WARNING
    first, *more = event_lines(job_pb2.JobEvent(log=log))
    assert first.endswith(": 2 layers")
    assert more == ["conv1", "conv2"]


def test_step_without_a_curvature_check_shows_no_curvature() -> None:
    event = loss_event(1, 1)
    event.loss.curvature_layers, event.loss.stopped_layers = 54, 4
    assert "curvature" not in event_lines(event)[0]


def test_skipped_step_shows_the_reason() -> None:
    event = loss_event(1, 1)
    event.loss.skipped = True
    assert event_lines(event)[0].endswith("SKIPPED: non-finite")
    event.loss.skipped_because = "the factor A of trunk.conv1 is not finite"
    assert event_lines(event)[0].endswith("SKIPPED: the factor A of trunk.conv1 is not finite")


def compiling_event() -> job_pb2.JobEvent:
    event = loss_event(1, 1)
    event.loss.compiled, event.loss.eta_seconds = True, -1
    return event


def test_step_that_compiles_shows_no_speed_and_no_time_left() -> None:
    event = compiling_event()
    (line,) = event_lines(event)
    assert line.endswith("  compiling")
    assert "images/s" not in line
    assert "eta" not in line
    event.loss.eta_seconds = 61  # a later compilation: the speed of the other steps is known
    assert event_lines(event)[0].endswith("  eta 1 min 1 s")


def test_live_display_says_that_a_job_compiles() -> None:
    stream = io.StringIO()
    with LiveDisplay(Output(stream, as_json=False), job_of("job-1")) as display:
        display.event(compiling_event())
    assert "compiling" in stream.getvalue()
    assert "left" not in stream.getvalue()


def progress_event(seq: int, done: int, total: int = 1000) -> job_pb2.JobEvent:
    event = job_pb2.JobEvent(seq=seq, job_id="job-1", attempt=1)
    event.time.FromJsonString("2026-01-31T12:00:00Z")
    event.progress.CopyFrom(job_pb2.ProgressEvent(done=done, total=total, eta_seconds=62))
    return event


def evaluation() -> job_pb2.Job:
    return job_of("job-1", kind=job_pb2.JOB_KIND_EVALUATION)


def test_line_display_shows_evaluation_progress_in_steps_of_5_percent() -> None:
    stream = io.StringIO()
    display = LineDisplay(Output(stream, as_json=False), evaluation())
    for done in (10, 40, 60, 80, 109, 115, 500, 510, 20, 30):
        display.event(progress_event(1, done))
    lines = [line.partition("progress  ")[2] for line in stream.getvalue().splitlines()[1:]]
    # 20 belongs to the next attempt, which starts again.
    assert lines == [f"{done} of 1000 images  eta 1 min 2 s" for done in (60, 115, 500, 20)]


def test_live_display_moves_the_bar_without_printing_progress_events() -> None:
    stream = io.StringIO()
    with LiveDisplay(Output(stream, as_json=False), evaluation()) as display:
        for done in (100, 200, 400):
            display.event(progress_event(1, done))
    text = stream.getvalue()
    assert "40%" in text
    assert "1 min 2 s left" in text
    assert "images" not in text


def test_job_details_include_evaluation_progress() -> None:
    job = evaluation()
    job.progress.step, job.progress.total_steps = 60, 120
    assert "progress    60 of 120 images" in job_lines(job)


def test_block_curve_fits_and_fills_its_box():
    lines = block_curve([float(v) for v in range(100, 0, -1)], width=20, height=3)
    assert [len(line) for line in lines] == [20, 20, 20]
    assert lines[0][0] == "█"
    assert lines[2][-1] == "▁"
    assert lines[0][-1] == " "
    assert block_curve([float("nan")], 5, 2) == ["", ""]
    assert block_curve([1.0, 1.0], 5, 1) == ["▁▁"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "unknown"), (0.4, "0 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min"), (185, "3 min 5 s")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_loss_that_rounds_to_zero_has_no_sign() -> None:
    (line, *_) = event_lines(loss_event(1, 1, loss=-0.00001))
    assert "loss 0.0000" in line
    assert "classification 0.0000" in line


def test_job_details_name_the_best_checkpoint() -> None:
    job = job_of("job-1")
    job.best_checkpoint.name, job.best_checkpoint.step = "step-00000007", 7
    (best,) = [line for line in job_lines(job) if line.startswith("best ")]
    assert "step-00000007" in best
