"""Displays that only ever append: for pipes, files and programs."""

from __future__ import annotations

from multigrain.v1.job_pb2 import Job, JobEvent, ProgressEvent
from multigrain_client.cli.describe import event_line, metrics
from multigrain_client.cli.output import Output
from multigrain_client.cli.progress.display import Display
from multigrain_client.jobs import kind_name, state_name

PROGRESS_STEP = 0.05


class LineDisplay(Display):
    """One line an event.

    Args:
        every: show every so many steps only (the last one always); of an evaluation's progress
            twentieths are shown; other events all.
    """

    def __init__(self, output: Output, job: Job, *, every: int = 1) -> None:
        self._output = output
        self._every = max(every, 1)
        self._shown = 0.0
        output.line(f"{kind_name(job).lower()} job {job.job_id} {job.name}".rstrip())

    def event(self, event: JobEvent) -> None:
        if event.HasField("loss"):
            step = event.loss.step
            if step % self._every and step != event.loss.total_steps:
                return
        elif event.HasField("progress") and not self._moved(event.progress):
            return
        # What belongs to the line above (a table in a log) is set in.
        self._output.line(event_line(event).replace("\n", "\n    "))

    def _moved(self, progress: ProgressEvent) -> bool:
        """Whether a progress is worth a line: one comes each second, for hours maybe."""
        share = progress.done / max(progress.total, 1)
        if self._shown <= share < self._shown + PROGRESS_STEP:
            return False
        self._shown = share
        return True

    def end(self, job: Job) -> None:
        figures = f"  {metrics(job.metrics)}" if job.metrics else ""
        self._output.line(f"job {job.job_id} {state_name(job)}{figures}")


class JsonDisplay(Display):
    """One JSON object a line: every event, then the job."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def event(self, event: JobEvent) -> None:
        self._output.data(event)

    def end(self, job: Job) -> None:
        self._output.data(job)
