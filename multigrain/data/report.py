"""Reports in the event log what the listing of a dataset left out."""

from __future__ import annotations

from multigrain.data.image_folder import ImageFolder
from multigrain.events.records import LogRecord
from multigrain.jobs.context import WorkerContext


def report_listing(ctx: WorkerContext, folder: ImageFolder) -> None:
    """Reports, from rank 0, what was left out and what is unusual about the layout.

    A warning if an image may be missing that the user means to be there; otherwise information:
    most datasets have a file or two that are no images.
    """
    if ctx.rank:
        return
    for warning in folder.warnings:
        fields = _fields(folder) if warning == folder.left_out_line else {}
        ctx.reporter.emit(LogRecord("WARNING", warning, ctx.rank, fields))
    if folder.left_out and not folder.left_out.suspect:
        ctx.reporter.emit(LogRecord("INFO", folder.left_out_line, ctx.rank, _fields(folder)))


def _fields(folder: ImageFolder) -> dict[str, str]:
    return {name: str(number) for name, number in folder.left_out.by_reason.items()}
