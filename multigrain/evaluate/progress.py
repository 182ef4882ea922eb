"""How far an evaluation is."""

from __future__ import annotations

import time
from collections.abc import Callable

from multigrain.events.records import ProgressRecord
from multigrain.jobs.context import Reporter

INTERVAL_SECONDS = 1.0


class EvaluationProgress:
    """Reports signs of life from every worker, and a ProgressRecord from the first, at most one
    a second: the other workers have shares of the same size and are about as far.

    Args:
        reporter: told.
        images: of all workers.
        share: images of this worker.
        passes: how often each goes through the network.
        rank: of this worker.
        clock: seconds.
    """

    def __init__(
        self,
        reporter: Reporter,
        *,
        images: int,
        share: int,
        passes: int,
        rank: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reporter = reporter
        self._total = images * passes
        self._share = share
        self._passes = passes
        self._rank = rank
        self._clock = clock
        self._start = self._last = clock()
        self._before = 0  # images of earlier passes

    def done(self, images: int) -> None:
        """So many images of this worker's share are done in this pass."""
        self._reporter.alive()
        now = self._clock()
        if self._rank or now - self._last < INTERVAL_SECONDS:
            return
        self._last = now
        mine = self._before + images
        share = mine / max(1, self._share * self._passes)
        left = (now - self._start) * (1 - share) / share if share else -1.0
        self._reporter.emit(
            ProgressRecord(done=round(share * self._total), total=self._total, eta_seconds=left)
        )

    def next_pass(self) -> None:
        """The images begin anew."""
        self._before += self._share
