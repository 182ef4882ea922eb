"""How many jobs may be queued, in all and by one client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.jobs.supervisor import Supervisor

# Part of the places that is kept for clients with fewer jobs than their share.
_KEPT = 0.1
# Jobs run for minutes and longer: a retry that comes sooner would rarely succeed.
_RETRY_SECONDS = 10.0


class QueueLimits:
    """Counts the queued jobs of each client, and those that are being submitted.

    Jobs that a restarted daemon finds queued count too.

    Args:
        supervisor: of the active jobs.
        most: queued jobs in all.
        most_of_client: queued jobs of one client.
    """

    def __init__(self, supervisor: Supervisor, most: int, most_of_client: int) -> None:
        self._supervisor = supervisor
        self._most = most
        self._most_of_client = most_of_client
        self._entering: Counter[str] = Counter()

    @contextmanager
    def place(self, client: str) -> Iterator[None]:
        """Holds a place in the queue until the block has queued a job, or failed.

        Args:
            client: who submits it: the name of a token, or a host.

        Raises:
            MultigrainError: OVERLOADED, saying which limit is reached and what to do.
        """
        self._check(client)
        self._entering[client] += 1
        try:
            yield
        finally:
            self._entering[client] -= 1
            if not self._entering[client]:
                del self._entering[client]

    def _check(self, client: str) -> None:
        queued = self._entering + Counter(
            active.request.client for active in self._supervisor.active.values() if active.queued
        )
        own, total = queued[client], queued.total()
        if own >= self._most_of_client:
            raise _full(
                f"{client or 'this client'} has {own} queued jobs",
                f"jobs.max_queued_per_client is {self._most_of_client}",
            )
        share = self._most // (len(queued | Counter([client])) + 1)
        kept = int(_KEPT * self._most) if own >= share else 0
        if total >= self._most - kept:
            others = f", the last {kept} are kept for clients with fewer jobs" if kept else ""
            raise _full(f"{total} jobs are queued", f"jobs.max_queued is {self._most}{others}")


def _full(what: str, limit: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.OVERLOADED,
        f"{what}, and {limit}: wait until some have started, cancel some, or raise the limit",
        retry_after=_RETRY_SECONDS,
    )
