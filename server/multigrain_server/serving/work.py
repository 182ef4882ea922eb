"""One image of a request, until it has its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from multigrain.engine.wire import VectorWants
from multigrain_server.serving.engine_item import EngineResult
from multigrain_server.serving.request import ItemError
from multigrain_server.serving.response_cache import Key


class Wanted(NamedTuple):
    """What is asked of each image of a request: equal where answers would be."""

    resolution: int
    vector: VectorWants | None
    top_k: int
    scores: bool
    tensor: bool


@dataclass(slots=True)
class Work:
    """``result`` is None as long as the image has to be computed."""

    image: bytes
    key: Key | None
    result: EngineResult | ItemError | None

    @property
    def outcome(self) -> EngineResult | ItemError:
        assert self.result is not None
        return self.result
