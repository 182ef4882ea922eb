"""Displays of a running job."""

from __future__ import annotations

from multigrain.v1.job_pb2 import Job
from multigrain_client.cli.output import Output
from multigrain_client.cli.progress.display import Display
from multigrain_client.cli.progress.lines import JsonDisplay, LineDisplay

__all__ = ["Display", "JsonDisplay", "LineDisplay", "choose"]


def choose(output: Output, job: Job, *, every: int = 1, plain: bool = False) -> Display:
    """JSON lines if asked for; a live display on a terminal if rich is installed; else lines."""
    if output.as_json:
        return JsonDisplay(output)
    if not plain and output.stream.isatty():
        try:
            from multigrain_client.cli.progress.live import LiveDisplay
        except ImportError:
            # rich is an optional package; lines say the same.
            pass
        else:
            return LiveDisplay(output.stream, job)
    return LineDisplay(output, job, every=every)
