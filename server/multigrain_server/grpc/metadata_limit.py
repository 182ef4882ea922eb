"""A limit of the metadata entries that are copied for a call.

gRPC limits metadata only once a client has acknowledged the server's settings. Until then, 400 KB
of compressed headers decode to 400,000 entries, which grpc.aio copies to Python before any code of
the daemon runs: more than a second of the event loop, and 100 MiB. It makes each entry with a class
that it looks up by name, which is replaced here by one that stops a call with too many.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]

#: Ordinary clients send some ten; gRPC accepts 16 KiB of those that acknowledge its settings.
MAX_ENTRIES = 512
_LOOK_ENTRIES = 64
# Between two looks, if they are at entries of one call.
_PAUSE_SECONDS = 0.1

_NAME = "_Metadatum"
_GRPC_LOG = logging.getLogger("grpc._cython.cygrpc")


class _TooMuchMetadataError(Exception):
    """Ends a call: gRPC answers it with UNKNOWN."""


class _Silence(logging.Filter):
    """Drops the traceback that is logged for each call that is ended here.

    Also where gRPC fails to answer one that it has ended itself meanwhile.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, _TooMuchMetadataError | cygrpc.ExecuteBatchError)


class _Limit:
    """Counts the entries that one task makes at a time.

    Looks only now and then whose entries these are, as it is called for each of every call.

    Args:
        make: the class of an entry.
        on_excess: called for each call that is stopped.
    """

    def __init__(self, make: Any, on_excess: Callable[[], None]) -> None:
        self.make = make
        self._on_excess = on_excess
        self._thread = threading.get_ident()
        self._task: asyncio.Task[Any] | None = None
        self._looked = 0.0
        self._entries = 0

    def maker(self) -> Callable[[str, str | bytes], Any]:
        """What makes an entry, within the limit."""
        entries = 0
        make = self.make

        def limited(key: str, value: str | bytes) -> Any:
            nonlocal entries
            entries += 1
            if not entries % _LOOK_ENTRIES:
                self._look()
            return make(key, value)

        limited.limit = self  # type: ignore[attr-defined]
        return limited

    def _look(self) -> None:
        # Clients in other threads make entries as well.
        if threading.get_ident() != self._thread:
            return
        # gRPC has a task for each call, and makes all entries of a call in one go.
        try:
            task = asyncio.current_task()
        except RuntimeError:  # the event loop has ended
            return
        now = time.monotonic()
        if task is None or task is not self._task or now - self._looked > _PAUSE_SECONDS:
            self._task = task
            self._entries = 0
        else:
            self._entries += _LOOK_ENTRIES
        self._looked = now
        if self._entries > MAX_ENTRIES:
            self._task = None
            self._on_excess()
            raise _TooMuchMetadataError(f"a call has at most {MAX_ENTRIES} metadata entries")


def limit_metadata(on_excess: Callable[[], None]) -> bool:
    """Limits the metadata entries of calls that are served in this thread's event loop.

    Args:
        on_excess: called for each call that is stopped.

    Returns:
        False if this version of gRPC makes entries in another way: there is no limit then.
    """
    found = getattr(cygrpc, _NAME, None)
    if found is None:
        return False
    if not any(isinstance(one, _Silence) for one in _GRPC_LOG.filters):
        _GRPC_LOG.addFilter(_Silence())
    limit = getattr(found, "limit", None)
    make = limit.make if isinstance(limit, _Limit) else found
    setattr(cygrpc, _NAME, _Limit(make, on_excess).maker())
    return True
