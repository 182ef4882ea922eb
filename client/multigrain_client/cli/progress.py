"""Progress of jobs and of calls with many images."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self, TextIO, cast

from multigrain.data.listing import watched
from multigrain.streams import GuardedStream
from multigrain.text import printable
from multigrain.v1.job_pb2 import Job, JobEvent, ProgressEvent
from multigrain_client.cli.output import Output, event_lines, metrics
from multigrain_client.folder_embedding import OnProgress
from multigrain_client.jobs import is_terminal, kind_name, state_name
from multigrain_client.sync.client import Client

# An evaluation's progress is shown in steps of this share.
PROGRESS_STEP = 0.05
# Seconds between two lines of progress in a log.
LINE_EVERY = 10.0
# Seconds after which the listing of a folder is mentioned.
LISTING_AFTER = 3.0


class Display(ABC):
    """Shows the events of one job. A context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    @abstractmethod
    def event(self, event: JobEvent) -> None:
        """Shows the next event."""

    @abstractmethod
    def end(self, job: Job) -> None:
        """Shows the result of the job, which has ended."""


class LineDisplay(Display):
    """One line per event, for pipes and files.

    Args:
        output: where the lines go.
        job: the job.
        every: show every Nth training step only, and the last one. All other events are shown,
            except that an evaluation's progress is shown in steps of 5 %.
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
        first, *more = event_lines(event)
        self._output.line(first)
        for line in more:  # a table in a log
            self._output.line(f"    {line}")

    def _moved(self, progress: ProgressEvent) -> bool:
        """Whether the progress has moved by a step; an event arrives every second."""
        share = progress.done / max(progress.total, 1)
        if self._shown <= share < self._shown + PROGRESS_STEP:
            return False
        self._shown = share
        return True

    def end(self, job: Job) -> None:
        results = f"  {metrics(job.metrics)}" if job.metrics else ""
        self._output.line(f"job {job.job_id} {state_name(job)}{results}")


class JsonDisplay(Display):
    """One JSON object per line: every event, then the job."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def event(self, event: JobEvent) -> None:
        self._output.data(event)

    def end(self, job: Job) -> None:
        self._output.data(job)


def choose(output: Output, job: Job, *, every: int = 1, plain: bool = False) -> Display:
    """JSON lines with --json; a live display on a terminal if rich is installed; else lines."""
    if output.as_json:
        return JsonDisplay(output)
    if not plain and has_cursor(output.stream):
        try:
            from multigrain_client.cli.live import LiveDisplay
        except ImportError:
            # rich is optional; lines show the same.
            pass
        else:
            return LiveDisplay(output, job)
    return LineDisplay(output, job, every=every)


def show(client: Client, job: Job, display: Display, *, after_seq: int = 0) -> Job:
    """Shows a job's events until it has ended; returns the final job."""
    while True:
        for event in client.stream_events(job, after_seq=after_seq):
            after_seq = event.seq
            display.event(event)
        latest = client.job(job)
        # A job that was resumed at the moment its stream ended has more events.
        if is_terminal(latest):
            display.end(latest)
            return latest


def has_cursor(stream: GuardedStream) -> bool:
    """Whether the stream is a terminal that can draw over its own lines."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


@contextmanager
def counter(title: str, stream: GuardedStream) -> Iterator[OnProgress]:
    """Shows progress: a bar on a terminal if rich is installed, else a line every few seconds.

    Yields:
        a function to call with (done, total).
    """
    if has_cursor(stream):
        try:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )
        except ImportError:
            # rich is optional; lines show the same.
            pass
        else:
            with Progress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(file=cast("TextIO", stream)),
                expand=True,
            ) as bar:
                task = bar.add_task(title, total=None, rate="")
                begun = time.monotonic()

                def show(done: int, total: int) -> None:
                    bar.update(task, total=total, completed=done, rate=_rate(done, begun))

                yield show
            return
    yield _lines(title, stream)


def _lines(title: str, stream: GuardedStream) -> OnProgress:
    begun = shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < LINE_EVERY and done < total:
            return
        shown = now
        print(f"{title}: {done} of {total}, {_rate(done, begun)}", file=stream, flush=True)

    return show


@contextmanager
def listing(folder: str, stream: GuardedStream) -> Iterator[None]:
    """Shows that a folder is being listed, once that takes seconds."""
    shown = time.monotonic() + LISTING_AFTER - LINE_EVERY
    folders = 0

    def proceed() -> None:
        nonlocal shown, folders
        now = time.monotonic()
        if now - shown >= LINE_EVERY:
            shown = now
            text = printable(f"listing {folder}: {folders} folders and unknown files so far")
            print(text, file=stream, flush=True)
        folders += 1

    with watched(proceed):
        yield


def _rate(done: int, begun: float) -> str:
    return f"{done / max(time.monotonic() - begun, 1e-9):.0f} images/s"
