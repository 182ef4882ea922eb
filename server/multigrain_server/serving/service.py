"""One image of a request, until it has its result."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from multigrain.engine.protocol import EmbeddingOptions, Result
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.engines.engine import EngineProcess, EngineResult, PendingItem
from multigrain_server.models.loaded_model import LoadedModel
from multigrain_server.models.manager import ModelManager
from multigrain_server.serving.admission import Load
from multigrain_server.serving.cache import Key
from multigrain_server.serving.types import (
    Answer,
    ClassScore,
    ImageRequest,
    ItemAnswer,
    ItemError,
    StageTimes,
    new_caller,
)
from multigrain_server.tracing.call import call_trace


class Wanted(NamedTuple):
    """What is asked of each image of a request: equal where answers would be."""

    resolution: int
    vector: EmbeddingOptions | None
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


# MERGED: From an engine's results to the answer of a request.


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
    if head.error is not None:
        return ItemAnswer(error=ItemError(head.error, head.message))
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


# MERGED: The one core behind every call that brings images.


class _TooBusyError(Exception):
    """The engine has more to do than it had when the request was admitted."""


_DEFAULT_TOP_K = 5
# For a refusal's way to its caller; half of what an engine allows for an answer's.
_REFUSAL_SECONDS = 0.05
# What says something about the call, not about one image of it.
_CALL_KINDS = {
    ErrorKind.DEADLINE,
    ErrorKind.OVERLOADED,
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
        self._cache = manager.cache

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
        # From here to the submission nothing waits: a model that was routed to is not ended
        # before it has the images.
        engine = model.engine
        wanted = Wanted(
            request.resolution,
            request.vector,
            self._top_k(request, model),
            request.scores,
            request.tensors,
        )
        work = [self._begin(image, engine, wanted) for image in request.images]
        missing = [item for item in work if item.result is None]
        if missing:
            await self._compute(missing, wanted, request, model, engine)
        return assemble(request, model, [item.outcome for item in work])

    def _begin(self, image: bytes, engine: EngineProcess, wanted: Wanted) -> Work:
        if not wanted.tensor and len(image) > self._config.max_image_bytes:
            return Work(image, None, self._too_large(len(image)))
        key = self._cache.key(image, engine, wanted)
        return Work(image, key, self._cache.get(key))

    async def _compute(
        self,
        work: list[Work],
        wanted: Wanted,
        request: ImageRequest,
        model: LoadedModel,
        engine: EngineProcess,
    ) -> None:
        """Sets the results."""
        load = Load(
            items=len(work),
            size=sum(len(item.image) for item in work),
            caller=request.caller or new_caller(),
            deadline_ns=request.deadline_ns,
        )
        name = model.entry.version.name
        with self._admission.admit(load, engine):
            admitted = time.monotonic_ns()
            self._metrics.stage(name, "admit", (admitted - request.received_ns) / 1e9)
            self._metrics.queue(name, load.items)
            try:
                await self._gather(work, wanted, load, engine)
            except _TooBusyError:
                raise self._admission.too_late(load, engine) from None
            finally:
                self._metrics.queue(name, -load.items)
        trace = call_trace.get()
        if trace is not None:
            done = [item.result.result for item in work if isinstance(item.result, EngineResult)]
            trace.computed(str(model.entry.version), done)

    async def _gather(
        self, work: list[Work], wanted: Wanted, load: Load, engine: EngineProcess
    ) -> None:
        pending: list[PendingItem] = []
        fields = {**wanted._asdict(), "caller": load.caller, "deadline_ns": load.deadline_ns}
        try:
            # One after the other, so that an error leaves those before it to be cancelled.
            pending.extend(engine.submit(item.image, **fields) for item in work)
            async with asyncio.timeout(_seconds_to_answer(load.deadline_ns)):
                await engine.drained()
                # One await an image, not a task: they are in work already.
                for item, sent in zip(work, pending, strict=True):
                    item.result = result = await sent.future
                    _raise_if_of_the_call(result.result)
                    self._cache.put(item.key, result)
        except BaseException as error:
            for sent in pending:
                engine.cancel(sent)
                sent.future.cancel()
            if isinstance(error, TimeoutError):
                if engine.pending > len(pending):
                    raise _TooBusyError from None  # alone it would have been in time
                raise _deadline() from None
            raise

    def _check_images(self, images: Sequence[bytes]) -> None:
        limit = self._config.max_images_per_request
        if not images:
            raise MultigrainError.field("images", "is empty: send at least one encoded image")
        if len(images) > limit:
            self._metrics.refused("too_many_items")
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
            self._metrics.refused("deadline")
            raise _deadline()

    def _top_k(self, request: ImageRequest, model: LoadedModel) -> int:
        if not request.classes:
            return 0
        manifest = model.entry.manifest
        classes = manifest.classes
        # "At most all": more than there are is not an error.
        return min(request.top_k or _DEFAULT_TOP_K, classes)

    def _too_large(self, size: int) -> ItemError:
        self._metrics.items_failed.labels("too_large").inc()
        limit = self._config.max_image_bytes
        return ItemError(
            ErrorKind.IMAGE_TOO_LARGE,
            f"the image has {size} bytes, at most {limit} are accepted: make it smaller",
        )


def _raise_if_of_the_call(result: Result) -> None:
    """Raises for what one image says about all the others of its call."""
    kind = result.error
    if kind is None or kind not in _CALL_KINDS:
        return
    if kind is ErrorKind.DEADLINE:
        raise _deadline()
    if kind is ErrorKind.OVERLOADED:
        raise _TooBusyError
    raise MultigrainError(kind, result.message)


def _whitens(request: ImageRequest) -> bool:
    return request.vector is not None and request.vector.whiten


def _seconds_to_answer(deadline_ns: int) -> float | None:
    """How long to wait for an engine so that a refusal still comes in time."""
    if not deadline_ns:
        return None
    seconds = (deadline_ns - time.monotonic_ns()) / 1e9
    return seconds - min(_REFUSAL_SECONDS, seconds / 40)


def _deadline() -> MultigrainError:
    return MultigrainError(
        ErrorKind.DEADLINE,
        "the deadline passed before the images were computed: allow more time, or send fewer",
    )
