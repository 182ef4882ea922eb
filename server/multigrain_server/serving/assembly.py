"""From an engine's results to the answer of a request."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence

from multigrain.engine.wire import Result
from multigrain_server.models.loaded_model import LoadedModel
from multigrain_server.serving.engine_item import EngineResult
from multigrain_server.serving.request import (
    Answer,
    ClassScore,
    ImageRequest,
    ItemAnswer,
    ItemError,
    StageTimes,
)


def assemble(
    request: ImageRequest, model: LoadedModel, results: Sequence[EngineResult | ItemError]
) -> Answer:
    """``results`` in the order of the request's images."""
    labels = model.entry.manifest.labels
    computed = [result.result for result in results if isinstance(result, EngineResult)]
    return Answer(
        version=model.entry.version,
        embedding_size=_vector_size(request, model),
        items=tuple(_item(result, labels) for result in results),
        times=StageTimes(
            decode=max((result.decode_ns for result in computed), default=0),
            queue=max((result.queue_ns for result in computed), default=0),
            compute=max((result.compute_ns for result in computed), default=0),
            total=time.monotonic_ns() - request.received_ns,
        ),
    )


def _item(result: EngineResult | ItemError, labels: Sequence[str]) -> ItemAnswer:
    if isinstance(result, ItemError):
        return ItemAnswer(error=result)
    head = result.result
    kind = head.error_kind
    if kind is not None:
        return ItemAnswer(error=ItemError(kind, head.message))
    return ItemAnswer(
        vector=result.payload[: head.vector_bytes],
        scale=head.scale,
        classes=_classes(head, result.payload, labels),
        scores=_scores(head, result.payload),
    )


def _classes(head: Result, payload: bytes, labels: Sequence[str]) -> tuple[ClassScore, ...]:
    count = head.classes
    if not count:
        return ()
    numbers = struct.unpack_from(f"<{count}i{count}f", payload, head.vector_bytes)
    return tuple(
        ClassScore(class_id, labels[class_id] if class_id < len(labels) else "", probability)
        for class_id, probability in zip(numbers[:count], numbers[count:], strict=True)
    )


def _scores(head: Result, payload: bytes) -> bytes:
    start = head.vector_bytes + 8 * head.classes
    return payload[start : start + 4 * head.scores]


def _vector_size(request: ImageRequest, model: LoadedModel) -> int:
    manifest = model.entry.manifest
    whitening = manifest.head(request.resolution).whitening
    whitens = request.vector is not None and request.vector.whiten
    if whitens and whitening is not None:
        return whitening.size
    return manifest.embedding_size
