"""How jobs, loss curves and images appear in a notebook.

``Job`` is a class that protobuf makes, to which no method can be added: its formatter is registered
with IPython when the client is imported in a notebook, or with ``%load_ext
multigrain_client.notebook``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape
from typing import Any

from multigrain.text import printable
from multigrain.v1.job_pb2 import Job
from multigrain_client.index_items import Hit
from multigrain_client.jobs import kind_name, state_name
from multigrain_client.loss_point import LossPoint

_WIDTH, _HEIGHT = 480, 120
_MOST_POINTS = 500


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext multigrain_client.notebook``."""
    shell.display_formatter.formatters["text/html"].for_type(Job, job_html)


def register() -> None:
    """Does the same if this process runs IPython; never imports it."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        load_ipython_extension(shell)


def job_html(job: Job) -> str:
    """A job as a table."""
    rows = [
        ("job", job.job_id),
        ("name", job.name),
        ("kind", kind_name(job).lower()),
        ("state", state_name(job).lower()),
        ("", job.state_message),
    ]
    if job.HasField("progress"):
        rows.append(("done", f"{job.progress.fraction:.0%}"))
    if job.HasField("last_loss"):
        rows.append(("loss", f"{job.last_loss.loss:.4f} at step {job.last_loss.step:,}"))
    if job.HasField("best_checkpoint"):
        rows.append(("best checkpoint", f"step {job.best_checkpoint.step:,}"))
    rows += [(name, f"{value:.4f}") for name, value in sorted(job.metrics.items())]
    if job.HasField("artifact"):
        rows.append(("model", job.artifact.model))
    if job.HasField("error"):
        rows.append(("error", job.error.message))
    cells = "".join(
        f'<tr><th style="text-align:left">{_text(name)}</th>'
        f'<td style="text-align:left">{_text(value)}</td></tr>'
        for name, value in rows
        if value
    )
    return f"<table>{cells}</table>"


def curve_html(points: Sequence[LossPoint]) -> str:
    """The loss over the steps as a picture (SVG)."""
    stride = max(1, len(points) // _MOST_POINTS)
    known = [p for p in points[::-1][::stride][::-1] if abs(p.loss) < 1e30]
    if len(known) < 2:
        return f"<p>{len(points)} loss points</p>"
    low, high = min(p.loss for p in known), max(p.loss for p in known)
    first, last = known[0], known[-1]
    across = (_WIDTH - 4) / max(last.step - first.step, 1)
    down = (_HEIGHT - 4) / ((high - low) or 1.0)
    path = "L".join(
        f"{2 + (p.step - first.step) * across:.1f} {2 + (high - p.loss) * down:.1f}" for p in known
    )
    label = f"loss {first.loss:.4f} at step {first.step:,} to {last.loss:.4f} at step {last.step:,}"
    return (
        f'<figure style="margin:0"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'role="img" aria-label="{label}"><path d="M{path}" fill="none" stroke="#0b7285" '
        f'stroke-width="1.5"></path></svg><figcaption>{label}</figcaption></figure>'
    )


def hits_html(hits: Sequence[Hit]) -> str:
    """The hits of a search as a table."""
    rows = "".join(
        f'<tr><td style="text-align:right">{hit.similarity:.4f}</td>'
        f'<td style="text-align:left">{_text(hit.item.path or hit.item.id)}</td>'
        f'<td style="text-align:left">{_text(", ".join(hit.item.labels))}</td></tr>'
        for hit in hits
    )
    return f"<table><tr><th>similarity</th><th>item</th><th>labels</th></tr>{rows}</table>"


def _text(value: str) -> str:
    return escape(printable(value))
