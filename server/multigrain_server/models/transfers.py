"""Limits of imports and downloads, of models and of jobs' files: they take disk, descriptors and
threads while they run."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.config import ServingConfig

_RETRY_SECONDS = 5.0

_T = TypeVar("_T")


class Transfers:
    """Counts the transfers of each client, and ends those that make no progress.

    Args:
        config: the limits.
    """

    def __init__(self, config: ServingConfig) -> None:
        self._per_client = config.max_transfers_per_client
        self._in_all = config.max_transfers
        self._seconds = config.transfer_timeout_seconds
        self._running: Counter[str] = Counter()

    @property
    def running(self) -> int:
        """Transfers that are open."""
        return self._running.total()

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Counts a transfer while it runs.

        Args:
            client: whom it is counted for.

        Raises:
            MultigrainError: OVERLOADED, naming the limit.
        """
        if self._running[client] >= self._per_client:
            raise _refused(
                f"{client or 'the client'} has {self._running[client]} imports and downloads open",
                "serving.max_transfers_per_client",
            )
        if self.running >= self._in_all:
            raise _refused(
                f"{self.running} imports and downloads are open",
                "serving.max_transfers",
            )
        self._running[client] += 1
        try:
            yield
        finally:
            self._running[client] -= 1
            if not self._running[client]:
                del self._running[client]

    async def progress(self, step: Awaitable[_T], what: str) -> _T:
        """Waits for the next step of the other side.

        Args:
            step: sends or receives a message.
            what: the other side did not do if this takes too long ("took no data").

        Raises:
            MultigrainError: DEADLINE.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await step
        except TimeoutError:
            raise MultigrainError(
                ErrorKind.DEADLINE,
                f"the client {what} for {self._seconds:g} s (serving.transfer_timeout_seconds), "
                "and the transfer was ended: start it again",
            ) from None


def _refused(what: str, setting: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.OVERLOADED,
        f"{what}, {setting} allows no more: wait for one to end",
        retry_after=_RETRY_SECONDS,
    )
