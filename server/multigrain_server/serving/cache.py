"""Results of images that were computed before, so that the same image is computed once."""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Hashable
from weakref import WeakKeyDictionary

from multigrain_server.engines.engine import EngineProcess
from multigrain_server.engines.images import ImageResult
from multigrain_server.models.metrics import ServingMetrics

Key = tuple[bytes, int, Hashable]

# Bytes of an entry besides its payload: key, digest, result and their places in the dictionary.
_OVERHEAD = 600


class ResponseCache:
    """The least recently used results make room for new ones.

    A key is the image's hash, the engine and the options. The engine and not the model's version:
    the numbers of another runtime differ, and a version can be deleted and imported again with
    other weights.

    Args:
        limit: bytes of results that are kept.
        metrics: where lookups are counted.
    """

    def __init__(self, limit: int, metrics: ServingMetrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._results: OrderedDict[Key, ImageResult] = OrderedDict()
        self._bytes = 0
        self._engines: WeakKeyDictionary[EngineProcess, int] = WeakKeyDictionary()
        self._numbers = itertools.count()

    def key(self, image: bytes, engine: EngineProcess, options: Hashable) -> Key:
        """The key of an image's result."""
        number = self._engines.get(engine)
        if number is None:
            number = self._engines[engine] = next(self._numbers)
        # Without a secret key: no two images with the same hash can be made anyway.
        return hashlib.blake2b(image, digest_size=20).digest(), number, options

    def get(self, key: Key) -> ImageResult | None:
        found = self._results.get(key)
        self._metrics.cache_lookups.labels("miss" if found is None else "hit").inc()
        if found is not None:
            self._results.move_to_end(key)
        return found

    def put(self, key: Key, result: ImageResult) -> None:
        """Keeps a result that is no error."""
        if result.reply.error is not None or key in self._results:
            return
        self._results[key] = result
        self._bytes += _size(result)
        while self._bytes > self._limit:
            _, oldest = self._results.popitem(last=False)
            self._bytes -= _size(oldest)
        self._metrics.cache_bytes.set(self._bytes)


def _size(result: ImageResult) -> int:
    return len(result.payload) + _OVERHEAD
