"""Events as lines of text."""

from __future__ import annotations

import pytest

from multigrain.v1 import job_pb2
from multigrain_client.cli.output import event_line
from tests.client.events import loss_event


@pytest.mark.parametrize(
    ("refreshed", "kept", "stopped", "text"),
    [
        (54, 0, 0, "  curvature refreshed: 54 of 54  "),
        (17, 30, 7, "  curvature refreshed: 17 of 54, 7 stopped  "),
        (0, 50, 4, "  curvature refreshed: 0 of 54, 4 stopped  "),
    ],
)
def test_a_check_of_the_curvature_is_told(
    refreshed: int, kept: int, stopped: int, text: str
) -> None:
    event = loss_event(1, 1)
    event.loss.curvature_layers = 54
    event.loss.refreshed_layers, event.loss.kept_layers = refreshed, kept
    event.loss.stopped_layers = stopped
    assert text in event_line(event)


def test_a_long_note_is_one_line_and_a_long_warning_is_whole() -> None:
    log = job_pb2.LogEvent(level=job_pb2.LogEvent.LEVEL_INFO, message="2 layers\nconv1\nconv2")
    assert event_line(job_pb2.JobEvent(log=log)).endswith(": 2 layers (2 more lines with --json)")
    log.level = job_pb2.LogEvent.LEVEL_WARNING
    assert event_line(job_pb2.JobEvent(log=log)).endswith(": 2 layers\nconv1\nconv2")


def test_a_step_without_a_check_says_nothing_of_curvature() -> None:
    event = loss_event(1, 1)
    event.loss.curvature_layers, event.loss.stopped_layers = 54, 4
    assert "curvature" not in event_line(event)


def test_a_skipped_step_says_what_was_not_finite() -> None:
    event = loss_event(1, 1)
    event.loss.skipped = True
    assert event_line(event).endswith("SKIPPED: non-finite")
    event.loss.skipped_because = "the factor A of trunk.conv1 is not finite"
    assert event_line(event).endswith("SKIPPED: the factor A of trunk.conv1 is not finite")
