"""Loads what a request asks for and is not loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models.reference import ModelVersion

_RETRY_SECONDS = 1.0


class OnDemand:
    """Nobody waits inside: a request is told to come again, as its client does by itself.

    Args:
        load: loads "name@version".
        spawn: runs a coroutine in the background.
        failure_seconds: for so long a failed load is not tried again, and its error is told.
    """

    def __init__(
        self,
        load: Callable[[str], Coroutine[Any, Any, object]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        failure_seconds: float,
    ) -> None:
        self._load = load
        self._spawn = spawn
        self._failure_seconds = failure_seconds
        self._loading: set[ModelVersion] = set()
        self._failed: dict[ModelVersion, tuple[float, MultigrainError]] = {}

    def ask(self, version: ModelVersion) -> MultigrainError:
        """Sees to it that the version is loaded; returns what the request is told."""
        until, error = self._failed.get(version, (0.0, None))
        if error is not None and time.monotonic() < until:
            return error
        if version not in self._loading:
            self._loading.add(version)
            self._spawn(self._run(version))
        return MultigrainError(
            ErrorKind.UNAVAILABLE,
            f"{version} is being loaded: try again in a moment",
            retry_after=_RETRY_SECONDS,
        )

    async def _run(self, version: ModelVersion) -> None:
        self._failed.pop(version, None)
        try:
            await self._load(str(version))
        except MultigrainError as error:
            self._failed[version] = (time.monotonic() + self._failure_seconds, error)
        finally:
            self._loading.discard(version)
