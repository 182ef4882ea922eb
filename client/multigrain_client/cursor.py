"""Position in a job's event stream: what to ask for next, what was seen, when to give up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from multigrain.v1.job_pb2 import EventKind, JobEvent, StreamEventsRequest
from multigrain_client.errors import MultigrainClientError, StreamGap
from multigrain_client.messages import fill
from multigrain_client.retry import RetryPolicy, stream_delay

GAPS_IN_A_ROW = 3


class EventCursor:
    """Keeps a stream of events complete and free of doubles over any number of connections.

    It does no input or output itself, so that the sync and the async client share it.

    Args:
        job_id: the job.
        after_seq: only events with a greater seq.
        kinds: EventKind numbers; empty = all.
        follow: go on with live events until the job has ended.
        policy: when a broken stream is taken up again.
        clock: seconds, monotonic.

    Raises:
        InvalidRequest: for an ``after_seq`` that is no whole number from 0.
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
        fill(StreamEventsRequest(), {"after_seq": after_seq})
        self._job_id = job_id
        self._seq = after_seq
        self._kinds = tuple(kinds)
        self._follow = follow
        self._policy = policy
        self._clock = clock
        self._last_sign = clock()
        self._failures = 0
        self._gaps = 0

    @property
    def seq(self) -> int:
        """Everything up to this was yielded, or filtered out by ``kinds``."""
        return self._seq

    def request(self) -> StreamEventsRequest:
        """The request that continues after everything seen."""
        return StreamEventsRequest(
            job_id=self._job_id, after_seq=self._seq, kinds=self._kinds, follow=self._follow
        )

    def accept(self, event: JobEvent) -> bool:
        """Whether the event is new and to be yielded.

        Raises:
            StreamGap: if it skips a number. The caller reconnects (see ``on_gap``).
        """
        self._last_sign = self._clock()
        self._failures = 0
        if event.HasField("heartbeat"):
            # It vouches for everything up to its number, but only where nothing is missing:
            # unfiltered, a number ahead of ours means that events are still on their way.
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
        """Seconds until the stream is asked for again from before the gap.

        Raises:
            StreamGap: if the gap is there again and again.
        """
        self._gaps += 1
        if self._gaps >= GAPS_IN_A_ROW:
            raise error
        return self._policy.backoff(self._gaps)

    def on_error(self, error: MultigrainClientError) -> float:
        """Seconds until the stream is taken up again.

        Raises:
            MultigrainClientError: the error itself, if it is not worth another try.
        """
        self._failures += 1
        delay = stream_delay(
            self._policy,
            error,
            failures=self._failures,
            quiet=self._clock() - self._last_sign,
        )
        if delay is None:
            raise error
        return delay
