"""Positions in streams that survive their connection: events of a job, bulk embedding.

Nothing here does input or output, so that the blocking and the asyncio client share it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from multigrain.v1.job_pb2 import EventKind, JobEvent, StreamEventsRequest
from multigrain_client.errors import MultigrainClientError, StreamGap
from multigrain_client.images import Batch
from multigrain_client.json_format import fill
from multigrain_client.retry import RetryPolicy, stream_delay

_MAX_GAPS = 3
# Batches without an image to send that may wait in a window, besides those in flight.
_MAX_UNSENT = 16


class EventCursor:
    """Keeps an event stream complete and free of duplicates over any number of connections.

    Args:
        job_id: the job.
        after_seq: only events with a greater seq.
        kinds: EventKind numbers; empty = all.
        follow: continue with live events until the job has ended.
        policy: when a broken stream is reconnected.
        clock: seconds, monotonic.

    Raises:
        InvalidRequest: if the id is not text, or ``after_seq`` not a whole number from 0.
    """

    def __init__(
        self,
        job_id: str,
        *,
        after_seq: int,
        kinds: Sequence[EventKind.ValueType],
        follow: bool,
        policy: RetryPolicy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        fill(StreamEventsRequest(), {"job_id": job_id, "after_seq": after_seq})
        self._job_id = job_id
        self._seq = after_seq
        self._kinds = tuple(kinds)
        self._follow = follow
        self._policy = policy
        self._clock = clock
        self._last_message = clock()
        self._failures = 0
        self._gaps = 0

    @property
    def seq(self) -> int:
        """Every event up to this one was yielded, or filtered out by ``kinds``."""
        return self._seq

    def request(self) -> StreamEventsRequest:
        """The request that continues after the last event."""
        return StreamEventsRequest(
            job_id=self._job_id, after_seq=self._seq, kinds=self._kinds, follow=self._follow
        )

    def accept(self, event: JobEvent) -> bool:
        """Whether the event is new and should be yielded.

        Raises:
            StreamGap: if the event skips a number. The caller reconnects (see ``on_gap``).
        """
        self._last_message = self._clock()
        self._failures = 0
        if event.HasField("heartbeat"):
            # A heartbeat confirms everything up to its seq, but only for a filtered stream:
            # unfiltered, a seq ahead of ours means that events are still on their way.
            if self._kinds:
                self._seq = max(self._seq, event.seq)
            return False
        if event.seq <= self._seq:
            return False
        if not self._kinds and event.seq != self._seq + 1:
            raise StreamGap(
                f"job {self._job_id}: event {event.seq} came after event {self._seq}; "
                f"{event.seq - self._seq - 1} are missing"
            )
        self._seq = event.seq
        self._gaps = 0
        return True

    def on_gap(self, error: StreamGap) -> float:
        """Seconds until the stream is reconnected from before the gap.

        Raises:
            StreamGap: if the gap persists.
        """
        self._gaps += 1
        if self._gaps >= _MAX_GAPS:
            raise error
        return self._policy.backoff(self._gaps)

    def on_error(self, error: MultigrainClientError) -> float:
        """Seconds until the stream is reconnected.

        Raises:
            MultigrainClientError: the error itself, if it is not retried.
        """
        self._failures += 1
        delay = stream_delay(
            self._policy,
            error,
            failures=self._failures,
            quiet=self._clock() - self._last_message,
        )
        if delay is None:
            raise error
        return delay


class ReplayWindow:
    """The unanswered batches of a bulk stream in order, so that a new connection can resend them.
    Each has an absolute position. Does not block.

    A batch without an image to send is never sent and never answered: it waits here only for its
    turn, which comes with the response before it. If there is no such response, the window is
    stuck.

    Args:
        limit: maximum number of batches in flight.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._batches: deque[Batch] = deque()
        self._first = 0
        self._in_flight = 0

    @property
    def first(self) -> int:
        """Position of the oldest unanswered batch, where a new connection starts."""
        return self._first

    @property
    def full(self) -> bool:
        return self._in_flight >= self._limit or len(self._batches) >= self._limit + _MAX_UNSENT

    @property
    def stuck(self) -> bool:
        """Full of batches that no response will remove: the connection must be ended."""
        return self.full and not self._in_flight

    def add(self, batch: Batch) -> None:
        self._batches.append(batch)
        self._in_flight += bool(batch.images)

    def at(self, position: int) -> Batch | None:
        """The batch at a position; None if it has not been added yet, or is answered."""
        offset = position - self._first
        return self._batches[offset] if 0 <= offset < len(self._batches) else None

    def unsent(self) -> Batch | None:
        """Removes and returns the oldest batch if it has no image to send."""
        if self._batches and not self._batches[0].images:
            return self._pop()
        return None

    def answered(self) -> Batch | None:
        """Removes and returns the oldest batch, which was just answered; None if there is none."""
        return self._pop() if self._batches else None

    def _pop(self) -> Batch:
        batch = self._batches.popleft()
        self._first += 1
        self._in_flight -= bool(batch.images)
        return batch
