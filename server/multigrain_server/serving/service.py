"""The one core behind every call that brings images."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Sequence

from multigrain.engine.wire import Result
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models.loaded_model import LoadedModel
from multigrain_server.models.manager import ModelManager
from multigrain_server.serving.engine_item import EngineResult, PendingItem
from multigrain_server.serving.engine_process import EngineProcess
from multigrain_server.serving.request import (
    Answer,
    ClassScore,
    ImageRequest,
    ItemAnswer,
    ItemError,
    StageTimes,
)

_DEFAULT_TOP_K = 5
# What says something about the call, not about one image of it.
_CALL_KINDS = {
    ErrorKind.DEADLINE,
    ErrorKind.CANCELLED,
    ErrorKind.UNAVAILABLE,
    ErrorKind.INVALID_FIELD,
}


class ImageService:
    """Admits a request, hands its images to the model's engine, gathers the answers."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager
        self._config = manager.config
        self._metrics = manager.metrics
        self._admission = manager.admission

    async def answer(self, request: ImageRequest) -> Answer:
        """Answers all images of a request.

        A bad image gets an error of its own; the call fails only for reasons of the call. If
        the caller goes away (cancellation) or the deadline passes, its images are dropped
        before they reach the network.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND, WRONG_STATE, OVERLOADED, UNAVAILABLE,
                DEADLINE.
        """
        self._check_images(request.images)
        model = self._manager.route(request.model)
        try:
            answer = await self._answer(request, model)
        except BaseException:
            model.statistics.fail.add(time.monotonic_ns() - request.received_ns)
            raise
        model.statistics.answered(answer)
        return answer

    def encoded(self, answer: Answer, seconds: float) -> None:
        """To be told how long it took to make a message of an answer."""
        self._metrics.stage(answer.model_name, "encode", seconds)
        model = self._manager.catalogue.loaded.get(answer.version)
        if model is not None:
            model.statistics.encode.add(int(seconds * 1e9))

    async def _answer(self, request: ImageRequest, model: LoadedModel) -> Answer:
        self._check_fields(request, model)
        self._check_deadline(request)
        size = sum(map(len, request.images))
        with self._admission.admit(len(request.images), size):
            # From here to the submission nothing waits: a model that was routed to is not
            # ended before it has the images.
            engine = model.engine
            name = model.entry.version.name
            admitted = time.monotonic_ns()
            self._metrics.stage(name, "admit", (admitted - request.received_ns) / 1e9)
            self._metrics.queue(name, len(request.images))
            try:
                results = await self._compute(request, model, engine)
            finally:
                self._metrics.queue(name, -len(request.images))
        return self._assemble(request, model, results)

    async def _compute(
        self, request: ImageRequest, model: LoadedModel, engine: EngineProcess
    ) -> list[EngineResult | ItemError]:
        top_k = self._top_k(request, model)
        out: list[EngineResult | ItemError] = []
        pending: list[PendingItem] = []
        places: list[int] = []
        try:
            for image in request.images:
                if not request.tensors and len(image) > self._config.max_image_bytes:
                    out.append(self._too_large(len(image)))
                    continue
                places.append(len(out))
                out.append(_MISSING)
                pending.append(
                    engine.submit(
                        image,
                        resolution=request.resolution,
                        deadline_ns=request.deadline_ns,
                        vector=request.vector,
                        top_k=top_k,
                        scores=request.scores,
                        tensor=request.tensors,
                    )
                )
            async with asyncio.timeout(_seconds_left(request.deadline_ns)):
                await engine.drained()
                # One await an image, not a task: they are in work already.
                for place, item in zip(places, pending, strict=True):
                    out[place] = await item.future
        except BaseException as error:
            for item in pending:
                engine.cancel(item)
                item.future.cancel()
            if isinstance(error, TimeoutError):
                raise _deadline() from None
            raise
        return out

    def _assemble(
        self,
        request: ImageRequest,
        model: LoadedModel,
        results: Sequence[EngineResult | ItemError],
    ) -> Answer:
        labels = model.entry.manifest.labels
        items = tuple(_item(result, labels) for result in results)
        computed = [result.result for result in results if isinstance(result, EngineResult)]
        return Answer(
            version=model.entry.version,
            embedding_size=_vector_size(request, model),
            items=items,
            times=StageTimes(
                decode=max((result.decode_ns for result in computed), default=0),
                queue=max((result.queue_ns for result in computed), default=0),
                compute=max((result.compute_ns for result in computed), default=0),
                total=time.monotonic_ns() - request.received_ns,
            ),
        )

    def _check_images(self, images: Sequence[bytes]) -> None:
        limit = self._config.max_images_per_request
        if not images:
            raise MultigrainError.field("images", "is empty: send at least one encoded image")
        if len(images) > limit:
            self._metrics.rejected.labels("too_many_items").inc()
            raise MultigrainError.field(
                "images",
                f"has {len(images)} images, at most {limit} in a request: split them, "
                "or use EmbedStream",
            )

    def _check_fields(self, request: ImageRequest, model: LoadedModel) -> None:
        manifest = model.entry.manifest
        known = [head.resolution for head in manifest.heads]
        if request.resolution and request.resolution not in known:
            raise MultigrainError.field(
                "resolution",
                f"{request.resolution} is not served by {model.entry.version}: use "
                f"{', '.join(map(str, known))}, or 0 for {known[0]}",
            )
        side = manifest.head(request.resolution).resolution
        if request.tensors and any(len(image) != 12 * side * side for image in request.images):
            raise MultigrainError.field(
                "images", f"must each hold 3 x {side} x {side} float32 numbers when prepared"
            )
        if _whitens(request) and manifest.head(request.resolution).whitening is None:
            able = [str(head.resolution) for head in manifest.heads if head.whitening is not None]
            where = f" at {request.resolution or known[0]} px" if able else ""
            hint = (
                f"use resolution {' or '.join(able)}, or leave it out"
                if able
                else "leave it out, or export the model with whitening_path"
            )
            raise MultigrainError.field(
                "whiten", f"{model.entry.version} carries no whitening{where}: {hint}"
            )

    def _check_deadline(self, request: ImageRequest) -> None:
        if request.deadline_ns and request.deadline_ns <= time.monotonic_ns():
            self._metrics.rejected.labels("deadline").inc()
            raise _deadline()

    def _top_k(self, request: ImageRequest, model: LoadedModel) -> int:
        if not request.classes:
            return 0
        manifest = model.entry.manifest
        classes = manifest.model.classes or len(manifest.labels)
        # "At most all": more than there are is not an error.
        return min(request.top_k or _DEFAULT_TOP_K, classes)

    def _too_large(self, size: int) -> ItemError:
        self._metrics.items_failed.labels("too_large").inc()
        limit = self._config.max_image_bytes
        return ItemError(
            ErrorKind.IMAGE_TOO_LARGE,
            f"the image has {size} bytes, at most {limit} are accepted: make it smaller",
        )


_MISSING = ItemError(ErrorKind.INTERNAL, "no answer")


def _item(result: EngineResult | ItemError, labels: Sequence[str]) -> ItemAnswer:
    if isinstance(result, ItemError):
        return ItemAnswer(error=result)
    head = result.result
    kind = head.error_kind
    if kind is not None:
        if kind in _CALL_KINDS:
            raise _deadline() if kind is ErrorKind.DEADLINE else MultigrainError(kind, head.message)
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


def _whitens(request: ImageRequest) -> bool:
    return request.vector is not None and request.vector.whiten


def _vector_size(request: ImageRequest, model: LoadedModel) -> int:
    manifest = model.entry.manifest
    whitening = manifest.head(request.resolution).whitening
    if _whitens(request) and whitening is not None:
        return whitening.size
    return manifest.embedding_size


def _seconds_left(deadline_ns: int) -> float | None:
    return (deadline_ns - time.monotonic_ns()) / 1e9 if deadline_ns else None


def _deadline() -> MultigrainError:
    return MultigrainError(
        ErrorKind.DEADLINE,
        "the deadline passed before the images were computed: allow more time, or send fewer",
    )
