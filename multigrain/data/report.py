"""Reports in the event log what the listing of a dataset left out."""

from __future__ import annotations

from multigrain.data.image_folder import ImageFolder
from multigrain.events.records import LogRecord
from multigrain.jobs.context import WorkerContext
from multigrain.text import printable


def report_listing(ctx: WorkerContext, folder: ImageFolder) -> None:
    """Reports, from rank 0, what was left out and what is unusual about the layout.

    A warning if an image may be missing that the user means to be there; otherwise information:
    most datasets have a file or two that are no images.
    """
    if ctx.rank:
        return
    root = printable(str(folder.root))
    if folder.warning:
        ctx.reporter.emit(LogRecord("WARNING", f"dataset {root}: {folder.warning}", ctx.rank))
    if folder.left_out:
        level = "WARNING" if folder.left_out.suspect else "INFO"
        message = f"dataset {root}: {len(folder)} images; left out: {folder.left_out.describe()}"
        fields = {name: str(number) for name, number in folder.left_out.by_reason.items()}
        ctx.reporter.emit(LogRecord(level, message, ctx.rank, fields))
