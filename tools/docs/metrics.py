"""Prometheus series of the daemon."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from prometheus_client.registry import Collector

from tools.docs.markdown import code, prose, table
from tools.docs.product import App, ServerConfig


@dataclass(frozen=True, order=True)
class Series:
    """One metric family.

    Attributes:
        name: as on the page, with the ``_total`` of a counter.
        type: counter, gauge or histogram.
        labels: names of its labels.
        help: what it measures.
    """

    name: str
    type: str
    labels: tuple[str, ...]
    help: str


@cache
def all_series() -> tuple[Series, ...]:
    """Every series of a daemon whose name starts with ``multigrain_``, by name."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_collect(Path(folder)))


def render() -> str:
    """A table of all series."""
    rows = [
        [
            f"{code(one.name)}\n{', '.join([one.type, *map(code, one.labels)])}",
            prose(one.help),
        ]
        for one in all_series()
    ]
    return table(["series, type and labels", "meaning"], rows)


async def _collect(folder: Path) -> tuple[Series, ...]:
    app = App(ServerConfig(data_dir=folder, listen="127.0.0.1:0", http_listen="127.0.0.1:0"))
    collectors: list[Collector] = list(app.registry._collector_to_names)
    found = []
    for collector in collectors:
        for family in collector.collect():
            if not family.name.startswith("multigrain_"):
                continue
            # prometheus_client has no public access to the label names of an empty family.
            labels = getattr(collector, "_labelnames", ()) or getattr(family, "_labelnames", ())
            name = family.name + ("_total" if family.type == "counter" else "")
            found.append(Series(name, family.type, tuple(labels or ()), family.documentation))
    return tuple(sorted(found))
