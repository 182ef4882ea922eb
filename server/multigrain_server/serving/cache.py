"""Answers to images that were seen before, so that the same picture is computed once."""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Hashable
from weakref import WeakKeyDictionary

from multigrain_server.engines.engine import EngineProcess, EngineResult
from multigrain_server.serving.metrics import ServingMetrics

Key = tuple[bytes, int, Hashable]

# Of an entry, besides its payload: key, digest, result and their places in the dictionary.
_OVERHEAD = 600


class ResponseCache:
    """The results used last, in ``limit`` bytes; 0 = nothing is kept, nor looked for.

    A key is the image's bytes (their hash), the engine and what was asked of it. The engine and
    not the model's version: another runtime's numbers differ, and a version can be deleted and
    imported again with other weights.
    """

    def __init__(self, limit: int, metrics: ServingMetrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._results: OrderedDict[Key, EngineResult] = OrderedDict()
        self._bytes = 0
        self._engines: WeakKeyDictionary[EngineProcess, int] = WeakKeyDictionary()
        self._numbers = itertools.count()

    def key(self, image: bytes, engine: EngineProcess, options: Hashable) -> Key | None:
        """What to look for; None if nothing is kept."""
        if not self._limit:
            return None
        number = self._engines.get(engine)
        if number is None:
            number = self._engines[engine] = next(self._numbers)
        # Keyed by nothing, and yet nobody can make two pictures with one such hash.
        return hashlib.blake2b(image, digest_size=20).digest(), number, options

    def get(self, key: Key | None) -> EngineResult | None:
        if key is None:
            return None
        found = self._results.get(key)
        self._metrics.cache_lookups.labels("miss" if found is None else "hit").inc()
        if found is not None:
            self._results.move_to_end(key)
        return found

    def put(self, key: Key | None, result: EngineResult) -> None:
        """Keeps a good result; the oldest make room for it."""
        if key is None or result.result.error is not None or key in self._results:
            return
        self._results[key] = result
        self._bytes += _size(result)
        while self._bytes > self._limit:
            _, oldest = self._results.popitem(last=False)
            self._bytes -= _size(oldest)
        self._metrics.cache_bytes.set(self._bytes)


def _size(result: EngineResult) -> int:
    return len(result.payload) + _OVERHEAD
