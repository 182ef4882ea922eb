"""Requests of a bulk stream that have no answer yet, so that a new connection can repeat them."""

from __future__ import annotations

from collections import deque

from multigrain_client.batches import Batch

# Batches of errors alone that may wait besides those under way.
_MOST_UNSENT = 16


class ReplayWindow:
    """The unanswered batches in order, each with an absolute position. Does not block.

    A batch that holds errors alone is never sent and never answered: it waits here only for its
    turn, which comes with an answer. Where none is to come the window gets stuck.

    Args:
        limit: batches that may be under way at the same time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._batches: deque[Batch] = deque()
        self._first = 0
        self._under_way = 0

    @property
    def first(self) -> int:
        """Position of the oldest unanswered batch: where a new connection begins."""
        return self._first

    @property
    def full(self) -> bool:
        return self._under_way >= self._limit or len(self._batches) >= self._limit + _MOST_UNSENT

    @property
    def stuck(self) -> bool:
        """Full of batches that no answer will take out: the connection is to be ended."""
        return self.full and not self._under_way

    def add(self, batch: Batch) -> None:
        self._batches.append(batch)
        self._under_way += bool(batch.images)

    def at(self, position: int) -> Batch | None:
        """The batch at a position; None if it has not been added yet, or was answered."""
        offset = position - self._first
        return self._batches[offset] if 0 <= offset < len(self._batches) else None

    def unsent(self) -> Batch | None:
        """Takes out the oldest batch if it is one of errors alone."""
        if self._batches and not self._batches[0].images:
            return self._pop()
        return None

    def answered(self) -> Batch | None:
        """Takes out the oldest batch, whose answer has come; None if there is none."""
        return self._pop() if self._batches else None

    def _pop(self) -> Batch:
        batch = self._batches.popleft()
        self._first += 1
        self._under_way -= bool(batch.images)
        return batch
