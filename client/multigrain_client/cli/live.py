"""The live display of a job on a terminal. Needs rich."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from multigrain.v1.job_pb2 import Job, JobEvent, JobState, LossEvent
from multigrain_client.cli.output import Output, duration, event_lines, metrics
from multigrain_client.cli.progress import Display
from multigrain_client.jobs import kind_name, state_name
from multigrain_client.json_format import enum_name

BLOCKS = " ▁▂▃▄▅▆▇█"
CURVE_HEIGHT = 4
# Redraws per second: smooth enough, and cheap over a slow ssh connection.
REFRESH = 4


class LiveDisplay(Display):
    """A progress bar, the values of the newest step and the loss curve; all other events scroll
    above them."""

    def __init__(self, output: Output, job: Job) -> None:
        self._output = output
        self._console = Console(file=cast("TextIO", output.stream))
        self._title = f"{kind_name(job).lower()} {job.job_id}" + (
            f" ({job.name})" if job.name else ""
        )
        self._state = state_name(job)
        # By step: points of a newer attempt replace those of older ones.
        self._losses: dict[int, float] = {}
        self._attempt = 0
        self._latest: LossEvent | None = None
        self._bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[eta]}"),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task(self._state, total=None, eta="")
        self._live = Live(
            console=self._console,
            refresh_per_second=REFRESH,
            get_renderable=self._render,
            transient=False,
        )

    def __enter__(self) -> Self:
        # As Text: rich would read "[red]" or ":smile:" in a name as markup.
        self._console.print(Text(self._output.shown(self._title), style="bold"))
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def event(self, event: JobEvent) -> None:
        self._output.check()
        if event.HasField("loss"):
            self._loss(event)
            return
        if event.HasField("progress"):
            done = event.progress
            self._advance(done.done, done.total, done.eta_seconds)
            return
        if event.HasField("state"):
            self._state = enum_name(JobState.DESCRIPTOR, event.state.state)
            self._bar.update(self._task, description=self._state)
        self._live.console.print(Text("\n    ".join(map(self._output.shown, event_lines(event)))))

    def end(self, job: Job) -> None:
        self._state = state_name(job)
        self._bar.update(self._task, description=self._state, eta="")
        if self._state == "SUCCEEDED":
            self._bar.update(self._task, total=1, completed=1)
        if job.metrics:
            self._live.console.print(Text(self._output.shown(metrics(job.metrics))))

    def _loss(self, event: JobEvent) -> None:
        loss = event.loss
        if event.attempt != self._attempt:
            # The newest attempt wins from its first step on.
            self._attempt = event.attempt
            self._losses = {s: value for s, value in self._losses.items() if s < loss.step}
        self._losses[loss.step] = loss.loss
        self._latest = loss
        compiling = loss.compiled and loss.eta_seconds < 0
        unknown = "compiling" if compiling else ""
        self._advance(loss.step, loss.total_steps, loss.eta_seconds, unknown)

    def _advance(self, done: int, total: int, eta_seconds: float, unknown: str = "") -> None:
        left = duration(eta_seconds)
        self._bar.update(
            self._task,
            total=total or None,
            completed=done,
            eta=f"{left} left" if left != "unknown" else unknown,
        )

    def _render(self) -> Group:
        parts: list[Progress | Table | Text] = [self._bar]
        if self._latest is not None:
            parts.append(self._step_values(self._latest))
            parts.append(self._curve())
        return Group(*parts)

    def _step_values(self, loss: LossEvent) -> Table:
        table = Table.grid(padding=(0, 2))
        cells = {
            "epoch": f"{loss.epoch}/{loss.total_epochs}",
            "step": f"{loss.step}/{loss.total_steps}",
            "loss": f"{loss.loss:z.4f}",
            "classification": f"{loss.classification_loss:z.4f}",
            "instance": f"{loss.instance_loss:z.4f}",
            "lr": f"{loss.learning_rate:z.3g}",
            "damping": f"{loss.damping:z.3g}" if loss.damping else "-",
            "images/s": f"{loss.images_per_second:.0f}",
            "data wait": f"{loss.data_wait:.0%}",
        }
        table.add_row(*(Text(name, style="dim") for name in cells))
        table.add_row(*cells.values())
        return table

    def _curve(self) -> Text:
        values = list(self._losses.values())
        if not self._console.encoding.lower().startswith("utf") or len(values) < 2:
            return Text("")
        width = max(self._console.width - 10, 10)
        lines = block_curve(values, width, CURVE_HEIGHT)
        low, high = min(values), max(values)
        labels = [f"{high:8.3f} "] + [" " * 9] * (CURVE_HEIGHT - 2) + [f"{low:8.3f} "]
        text = Text()
        for label, line in zip(labels, lines, strict=True):
            text.append(label, style="dim")
            text.append(line + "\n", style="cyan")
        return text


def resample(values: Sequence[float], width: int) -> list[float]:
    """At most ``width`` values: the means of equal parts. Non-finite values are dropped."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) <= width:
        return finite
    result = []
    for column in range(width):
        part = finite[column * len(finite) // width : (column + 1) * len(finite) // width]
        result.append(sum(part) / len(part))
    return result


def block_curve(values: Sequence[float], width: int, height: int) -> list[str]:
    """A curve in block characters: ``height`` lines of at most ``width`` characters.

    The largest value reaches the top; the smallest is one eighth of a line high, to be visible.
    """
    columns = resample(values, width)
    if not columns:
        return [""] * height
    low, high = min(columns), max(columns)
    steps = height * 8 - 1
    span = high - low
    levels = [1 + round((value - low) / span * steps) if span else 1 for value in columns]
    return [
        "".join(BLOCKS[min(max(level - row * 8, 0), 8)] for level in levels)
        for row in range(height - 1, -1, -1)
    ]
