"""Results of commands: jobs, models and events as text, tables, and JSON."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from multigrain.streams import GuardedStream
from multigrain.text import cell_width, printable, printable_lines
from multigrain.v1.common_pb2 import ErrorKind
from multigrain.v1.job_pb2 import (
    CheckpointEvent,
    EvaluationEvent,
    Job,
    JobEvent,
    JobState,
    LogEvent,
    LossEvent,
    ProgressEvent,
    StateEvent,
)
from multigrain.v1.model_pb2 import Model, ModelState
from multigrain_client.errors import MultigrainClientError
from multigrain_client.jobs import kind_name, state_name
from multigrain_client.json_format import enum_name, to_plain

JOB_HEAD = ("JOB", "KIND", "STATE", "DONE", "LOSS", "CREATED", "NAME")
MODEL_HEAD = ("MODEL", "STATE", "TRUNK", "VECTOR", "CLASSES", "PIXELS", "RUNTIME", "ALIASES")

# Select Graphic Rendition codes of states on a terminal.
_COLORS = {
    **dict.fromkeys(("SUCCEEDED", "READY"), "32"),
    **dict.fromkeys(("STARTING", "RUNNING", "LOADING"), "36"),
    **dict.fromkeys(("QUEUED", "STOPPING", "CANCELLED"), "33"),
    "FAILED": "31",
}
_NARROWEST = 12

_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


# Characters that JSON allows as they are, but that a terminal must not get.
_HIDDEN = re.compile(r"[^\x20-\x7e]")


class OutputError(Exception):
    """Standard output could not be written.

    Attributes:
        reason: why.
        broken_pipe: the reader of the pipe has left, which is no error of this program.
        lost: what was done, if the lines that could not be written said so.
    """

    def __init__(self, stream: GuardedStream, lost: str = "") -> None:
        failure = stream.failure or OSError()
        self.reason = failure.strerror or str(failure)
        self.broken_pipe = stream.broken_pipe
        self.lost = lost
        super().__init__(self.reason)


class Output:
    """Writes results to standard output, and errors and progress to standard error.

    Everything passes ``printable`` and the encoding of the stream here.

    Args:
        stream: standard output.
        errors: standard error; None = that of the process. What cannot be written to it is lost.
        as_json: print JSON instead of text.
        command: name of the command, for errors.
        commands: the command of each RPC ("LoadModel": "load"); errors of the server mention RPCs.
        progress_only: what cannot be written is lost, because the result is not in the output.
    """

    def __init__(
        self,
        stream: TextIO | GuardedStream,
        errors: TextIO | GuardedStream | None = None,
        *,
        as_json: bool,
        command: str = "",
        commands: Mapping[str, str] | None = None,
        progress_only: bool = False,
    ) -> None:
        self.stream = _guarded(stream)
        self.errors = _guarded(sys.stderr if errors is None else errors)
        self.as_json = as_json
        self._command = command
        self._commands = dict(commands or {})
        self._progress_only = progress_only

    def check(self) -> None:
        """Raises:
        OutputError: if standard output is closed or something could not be written.
        """
        if self.stream.failure is not None and not self._progress_only:
            raise OutputError(self.stream)

    def shown(self, text: str) -> str:
        """The text with the escapes with which it will appear, to measure it."""
        return self.stream.encodable(printable(text))

    def line(self, text: str = "") -> None:
        """Prints one line of text, except with --json.

        Raises:
            OutputError: if it cannot be written.
        """
        if not self.as_json:
            self._write(printable(text))

    def data(self, value: Message | Mapping[str, Any] | Sequence[Any]) -> None:
        """Prints one JSON value on one line, only with --json.

        Raises:
            OutputError: if it cannot be written.
        """
        if self.as_json:
            self.json(value)

    def json(self, value: Message | Mapping[str, Any] | Sequence[Any]) -> None:
        """Prints one JSON value on one line, with or without --json.

        Raises:
            OutputError: if it cannot be written.
        """
        plain = to_plain(value) if isinstance(value, Message) else value
        text = json.dumps(plain, ensure_ascii=not self.stream.shows_unicode)
        self._write(_HIDDEN.sub(_json_escape, text))

    def done(self, value: Message | Mapping[str, Any], *lines: str, in_file: bool = False) -> None:
        """Reports what a command has done, as JSON or text.

        Args:
            value: for --json.
            lines: else.
            in_file: the result is in a file: the reader of a pipe may leave before this report.

        Raises:
            OutputError: with the text, which must not be lost.
        """
        try:
            self.data(value)
            for line in lines:
                self.line(line)
        except OutputError as error:
            if not (in_file and error.broken_pipe):
                raise OutputError(self.stream, "; ".join(lines)) from None

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints aligned columns, except with --json.

        Raises:
            OutputError: if it cannot be written.
        """
        if self.as_json:
            return
        shown = [[self.shown(cell) for cell in row] for row in (head, *rows)]
        widths = [max(map(cell_width, column)) for column in zip(*shown, strict=True)]
        if self.stream.isatty():
            _fit(widths, shutil.get_terminal_size().columns)
        color = self.stream.isatty() and not os.environ.get("NO_COLOR")
        for row in shown:
            cells = []
            for cell, width in zip(row, widths, strict=True):
                text = _cut(cell, width)
                padding = " " * (width - cell_width(text))
                style = _COLORS.get(cell) if color else None
                cells.append(f"\x1b[{style}m{text}\x1b[0m{padding}" if style else text + padding)
            self._write("  ".join(cells).rstrip())

    def error(self, text: str) -> None:
        """Prints "multigrain COMMAND: TEXT" on standard error."""
        name = f"multigrain {self._command}".rstrip()
        self.note(f"{name}: {text}")

    def client_error(self, error: BaseException) -> None:
        """Prints an error of a call, a file or an image on one line of standard error."""
        if isinstance(error, OSError):
            # From files named on the command line: calls raise errors of the client.
            where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            text = f"{where}{error.strerror or error}"
        else:
            text = " ".join(str(error).split())
        notes = []
        if isinstance(error, MultigrainClientError):
            if error.kind and self._commands:  # from the server
                call = re.compile(rf"\b({'|'.join(self._commands)})\b")
                text = call.sub(lambda match: f"`multigrain {self._commands[match[0]]}`", text)
            if error.retry_after is not None:
                notes.append(f"retry in {error.retry_after:g} s")
            if error.request_id and error.kind == "INTERNAL":
                notes.append(f"request id {error.request_id}")
        text += f" ({', '.join(notes)})" if notes else ""
        self.error("; ".join([text, *getattr(error, "__notes__", ())]))

    def note(self, text: str) -> None:
        """Prints one line on standard error."""
        print(printable(text), file=self.errors, flush=True)

    def log_tail(self, text: str) -> None:
        """Prints the end of a log on standard error, if there is one."""
        if text:
            for line in printable_lines(text.rstrip()):
                print(line, file=self.errors)
            self.errors.flush()

    def _write(self, text: str) -> None:
        print(text, file=self.stream, flush=True)
        self.check()


def _fit(widths: list[int], columns: int) -> None:
    """Makes the widest columns narrower until a row fits, but none narrower than a few letters."""
    room = columns - 2 * (len(widths) - 1)
    while sum(widths) > room and (widest := max(widths)) > _NARROWEST:
        # The last of the widest: names are last.
        at = len(widths) - 1 - widths[::-1].index(widest)
        second = max((width for width in widths if width < widest), default=_NARROWEST)
        widths[at] = max(second, widest - (sum(widths) - room), _NARROWEST)
        if widths[at] == widest:
            widths[at] -= 1


def _cut(text: str, width: int) -> str:
    """The text, or its beginning with a mark that it is longer."""
    if cell_width(text) <= width:
        return text
    kept = ""
    for character in text:
        if cell_width(kept + character) > width - 1:
            break
        kept += character
    return f"{kept}~"


def _guarded(stream: TextIO | GuardedStream) -> GuardedStream:
    return stream if isinstance(stream, GuardedStream) else GuardedStream(stream)


def _json_escape(match: re.Match[str]) -> str:
    character = match[0]
    if printable(character) == character:
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def duration(seconds: float) -> str:
    """ "45 s", "3 min 5 s", "12 min", "2 h 10 min", as on the status page."""
    if seconds < 0 or not math.isfinite(seconds):
        return "unknown"
    seconds = round(seconds)
    for index, (length, name) in enumerate(_UNITS):
        whole, rest = divmod(seconds, length)
        if whole >= 10 or (whole and index == len(_UNITS) - 1):
            return f"{whole:.0f} {name}"
        if whole:
            below, smaller = _UNITS[index + 1]
            return f"{whole:.0f} {name} {rest // below:.0f} {smaller}"
    return "0 s"


def size(count: float) -> str:
    """ "512 B", "3.4 MiB", as on the status page."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def moment(timestamp: Timestamp) -> str:
    """Local time to the second; "-" if not set."""
    if not timestamp.seconds:
        return "-"
    utc: datetime = timestamp.ToDatetime(tzinfo=UTC)
    return utc.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def metrics(values: Mapping[str, float]) -> str:
    """ "top1 0.9810, loss 0.1234"."""
    return ", ".join(f"{name} {values[name]:z.4f}" for name in sorted(values))


def loss(event: LossEvent) -> str:
    """One training step on one line."""
    parts = [
        f"epoch {event.epoch}/{event.total_epochs}",
        f"step {event.step}/{event.total_steps}",
        f"loss {event.loss:z.4f}",
        f"classification {event.classification_loss:z.4f}",
        f"instance {event.instance_loss:z.4f}",
        f"lr {event.learning_rate:z.3g}",
    ]
    if event.damping:
        parts.append(f"damping {event.damping:z.3g}")
    if event.refreshed_layers or event.kept_layers:
        refreshed = f"curvature refreshed: {event.refreshed_layers} of {event.curvature_layers}"
        stopped = f", {event.stopped_layers} stopped" if event.stopped_layers else ""
        parts.append(refreshed + stopped)
    if event.compiled and event.eta_seconds < 0:
        parts.append("compiling")
    else:
        parts += [f"{event.images_per_second:.1f} images/s", f"eta {duration(event.eta_seconds)}"]
    if event.skipped:
        parts.append(f"SKIPPED: {event.skipped_because or 'non-finite'}")
    return "  ".join(parts)


def progress(event: ProgressEvent) -> str:
    """ "120 of 1491 images  eta 1m02s"."""
    return f"{event.done} of {event.total} images  eta {duration(event.eta_seconds)}"


def event_lines(event: JobEvent) -> list[str]:
    """An event on one line, or more for a long message of a log; ``printable``."""
    which = event.WhichOneof("event")
    text, more = "", list[str]()
    if which == "loss":
        text = loss(event.loss)
    elif which == "state":
        text = _state(event.state, event.attempt)
    elif which == "evaluation":
        text = _evaluation(event.evaluation)
    elif which == "checkpoint":
        text = _checkpoint(event.checkpoint)
    elif which == "log":
        text, *more = _log(event.log)
    elif which == "progress":
        text = progress(event.progress)
    elif which == "artifact":
        artifact = event.artifact
        text = f"model {artifact.model}: {', '.join(artifact.files)} ({size(artifact.bytes)})"
    clock = moment(event.time).partition(" ")[2]
    return [printable(f"{clock} {which or 'event'}  {text}".strip()), *more]


def _state(event: StateEvent, attempt: int) -> str:
    text = enum_name(JobState.DESCRIPTOR, event.state)
    if attempt > 1:
        text += f" (attempt {attempt})"
    if event.message:
        text += f": {event.message}"
    if event.HasField("error") and event.error.message not in event.message:
        text += f": {event.error.message}"
    return text


def _evaluation(event: EvaluationEvent) -> str:
    text = f"{metrics(event.metrics)}  {event.images} images in {duration(event.seconds)}"
    return text + (f", {event.unreadable} unreadable" if event.unreadable else "")


def _checkpoint(event: CheckpointEvent) -> str:
    best = ", best so far" if event.best else ""
    return f"{event.name}  step {event.step}, {size(event.bytes)}{best}"


def _log(event: LogEvent) -> list[str]:
    level = enum_name(LogEvent.Level.DESCRIPTOR, event.level).lower()
    who = "runner" if event.rank < 0 else f"worker {event.rank}"
    first, *more = printable_lines(event.message.rstrip("\n"))
    if more and event.level == LogEvent.LEVEL_INFO:
        # A table of all layers would fill the screen.
        return [f"{level} {who}: {first} ({len(more)} more lines with --json)"]
    return [f"{level} {who}: {first}", *more]


def job_row(job: Job) -> list[str]:
    """A row under JOB_HEAD."""
    progress = f"{job.progress.fraction:.0%}" if job.HasField("progress") else "-"
    last = f"{job.last_loss.loss:z.4f}" if job.HasField("last_loss") else "-"
    kind = kind_name(job).lower()
    return [job.job_id, kind, state_name(job), progress, last, moment(job.create_time), job.name]


def job_lines(job: Job) -> list[str]:
    """The details of one job."""
    state = state_name(job) + (f": {job.state_message}" if job.state_message else "")
    lines = [
        f"job         {job.job_id}",
        f"kind        {kind_name(job).lower()}",
        f"name        {job.name or '-'}",
        f"state       {state}",
        *([f"preset      {job.preset_reason}"] if job.preset_reason else []),
        f"attempt     {job.attempt}",
        f"created     {moment(job.create_time)}",
        f"started     {moment(job.start_time)}",
        f"ended       {moment(job.end_time)}",
    ]
    if job.labels:
        labels = ", ".join(f"{key}={value}" for key, value in sorted(job.labels.items()))
        lines.append(f"labels      {labels}")
    if job.HasField("last_loss"):
        lines.append(f"last step   {loss(job.last_loss)}")
    elif job.progress.total_steps:
        lines.append(f"progress    {job.progress.step} of {job.progress.total_steps} images")
    if job.HasField("last_checkpoint"):
        lines.append(f"checkpoint  {_checkpoint(job.last_checkpoint)}")
    if job.HasField("best_checkpoint"):
        lines.append(f"best        {_checkpoint(job.best_checkpoint)}")
    if job.metrics:
        lines.append(f"metrics     {metrics(job.metrics)}")
        lines.append(f"results     multigrain results {job.job_id}")
    if job.HasField("artifact"):
        lines.append(f"model       {job.artifact.model}")
    if job.HasField("error"):
        kind = enum_name(ErrorKind.DESCRIPTOR, job.error.kind)
        lines.append(f"error       {kind}: {job.error.message}")
        if job.error.log_tail:
            lines.append("log of the worker that exited first:")
            lines += [f"    {line}" for line in printable_lines(job.error.log_tail.rstrip())]
    return lines


def model_row(model: Model, default: str) -> list[str]:
    """A row under MODEL_HEAD; ``default`` is the name@version of the default model."""
    name = model_name(model)
    return [
        f"{name} (default)" if name == default else name,
        enum_name(ModelState.DESCRIPTOR, model.state),
        model.trunk,
        str(model.embedding_size),
        str(model.classes),
        str(model.resolution),
        # Without the reason for the choice, which `load` prints.
        model.runtime.partition(" (")[0] or "-",
        ", ".join(model.aliases) or "-",
    ]


def model_name(model: Model) -> str:
    """ "name@version" """
    return f"{model.name}@{model.version}"
