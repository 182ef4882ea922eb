"""How far a command is that goes through many images. On standard error: the result is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

# Seconds between two lines of a log.
LINE_EVERY = 10.0

OnProgress = Callable[[int, int], None]


@contextmanager
def counting(title: str, stream: TextIO | None = None) -> Iterator[OnProgress]:
    """A bar on a terminal if rich is installed, else a line every few seconds.

    Yields:
        a function to call with (done, total).
    """
    stream = stream or sys.stderr
    if stream.isatty():
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
            # rich is an optional package; lines say the same.
            pass
        else:
            with Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(file=stream),
                expand=True,
            ) as bar:
                task = bar.add_task(title, total=None, rate="")
                begun = time.monotonic()

                def show(done: int, total: int) -> None:
                    bar.update(task, total=total, completed=done, rate=_rate(done, begun))

                yield show
            return
    yield _lines(title, stream)


def _lines(title: str, stream: TextIO) -> OnProgress:
    begun = shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < LINE_EVERY and done < total:
            return
        shown = now
        print(f"{title}: {done} of {total}, {_rate(done, begun)}", file=stream, flush=True)

    return show


def _rate(done: int, begun: float) -> str:
    return f"{done / max(time.monotonic() - begun, 1e-9):.0f} images/s"
