"""Computes the images of requests, by whichever API they came: one core for all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest

from multigrain.bundle.manifest import Head
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.cost import DecodeCost, decode_cost
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.engine import EngineProcess, InFlight
from multigrain_server.engines.images import ImageRequest, ImageResult, new_caller
from multigrain_server.models.catalog import ModelCatalog
from multigrain_server.models.loaded_model import LoadedModel
from multigrain_server.models.metrics import ServingMetrics, StageTimes
from multigrain_server.models.registry import ModelVersion
from multigrain_server.serving.admission import Admission
from multigrain_server.serving.cache import Key, ResponseCache
from multigrain_server.serving.penalties import Penalties
from multigrain_server.tracing.call import call_trace

_DEFAULT_TOP_K = 5
# Time for a refusal to reach its caller; half of what an engine allows for a result.
_REFUSAL_SECONDS = 0.05
# Bytes of images that are examined on the event loop; more of them would hold up other calls.
_EXAMINED_AT_ONCE = 1 << 20
_EXAMINING_THREADS = 2
# Errors that concern the whole request, not one image of it.
_REQUEST_ERRORS = {
    ErrorKind.DEADLINE,
    ErrorKind.OVERLOADED,
    ErrorKind.CANCELLED,
    ErrorKind.UNAVAILABLE,
    ErrorKind.INVALID_FIELD,
}


class _TooBusyError(Exception):
    """The engine has more to do than it had when the request was admitted."""


@dataclass(frozen=True)
class ImageResponse:
    """The results of a request.

    Attributes:
        model: "name@version" of the model that computed it.
        version: the same, in its parts.
        embedding_size: numbers in a vector.
        labels: of the model's classes.
        results: one for each image, in the request's order.
        times: how long it took.
    """

    model: str
    version: ModelVersion
    embedding_size: int
    labels: Sequence[str]
    results: tuple[ImageResult, ...]
    times: StageTimes


class ImageService:
    """Admits requests, sends their images to the model's engine, and collects the results.

    Args:
        catalog: finds the model of a request.
        config: limits of serving.
        metrics: of serving.

    Attributes:
        admission: decides which requests are accepted, and counts the images in flight.
        penalties: clients whose images did harm.
    """

    def __init__(
        self, catalog: ModelCatalog, config: ServingConfig, metrics: ServingMetrics
    ) -> None:
        self._catalog = catalog
        self._config = config
        self._metrics = metrics
        self._cache = ResponseCache(config.cache_bytes, metrics) if config.cache_bytes else None
        self.admission = Admission(config, metrics)
        self.penalties = Penalties(metrics)
        self._examiners = ThreadPoolExecutor(_EXAMINING_THREADS, "examine-images")

    async def infer(self, request: ImageRequest) -> ImageResponse:
        """Computes all images of a request.

        A bad image gets an error of its own; the request fails only for reasons that concern all
        of it. If the caller is canceled or the deadline passes, images that no engine has
        computed yet are dropped.

        Raises:
            MultigrainError: INVALID_FIELD, NOT_FOUND, WRONG_STATE, OVERLOADED, UNAVAILABLE,
                DEADLINE.
        """
        self._check_images(request.images)
        model = self._catalog.route(request.model)
        try:
            resolution = _head(request, model).resolution
            self._check_deadline(request)
            if self._cache is None:
                # Before the time is spent to look at the images.
                self.admission.check_room(request, model.engine)
            request = replace(
                request,
                costs=await self._costs(request, resolution),
                penalized=self.penalties.active(request.client),
                on_harm=partial(self.penalties.penalize, request.client),
            )
            model = self._catalog.route(request.model)  # it may have been replaced
            response = await self._infer(request, model)
        except BaseException:
            model.statistics.fail.add(time.monotonic_ns() - request.received_ns)
            raise
        succeeded = sum(result.reply.error is None for result in response.results)
        model.statistics.answered(succeeded, response.times)
        return response

    def encoded(self, response: ImageResponse, seconds: float) -> None:
        """Counts how long it took to encode a response as a message."""
        self._metrics.stage(response.version.name, "encode", seconds)
        model = self._catalog.loaded.get(response.version)
        if model is not None:
            model.statistics.encode.add(int(seconds * 1e9))

    async def _infer(self, request: ImageRequest, model: LoadedModel) -> ImageResponse:
        head = _head(request, model)
        self._check_deadline(request)
        # Nothing awaits from here to the submission: a model that was routed to is not ended
        # before it has the images.
        engine = model.engine
        request = replace(
            request, top_k=_top_k(request, model), caller=request.caller or new_caller()
        )
        results, keys = self._known(request, engine)
        missing = [number for number, result in enumerate(results) if result is None]
        if missing:
            rest = replace(
                request,
                images=[request.images[number] for number in missing],
                costs=[request.costs[number] for number in missing] if request.costs else (),
            )
            computed = await self._compute(
                rest, [keys[number] for number in missing], model, engine
            )
            for number, result in zip(missing, computed, strict=True):
                results[number] = result
        return _response(request, model, head, [result for result in results if result is not None])

    async def _costs(self, request: ImageRequest, resolution: int) -> list[DecodeCost]:
        """What it costs to decode each image; none if they are preprocessed."""
        if request.tensors:
            return []
        # Larger ones are refused without a look at them.
        images = [
            image if len(image) <= self._config.max_image_bytes else b"" for image in request.images
        ]
        if sum(map(len, images)) <= _EXAMINED_AT_ONCE:
            return _decode_costs(images, resolution)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._examiners, _decode_costs, images, resolution)

    def _known(
        self, request: ImageRequest, engine: EngineProcess
    ) -> tuple[list[ImageResult | None], list[Key | None]]:
        """Results that need not be computed, and the keys of the others in the cache."""
        limit, cache = self._config.max_image_bytes, self._cache
        options = (
            *(request.resolution, request.vector, request.top_k),
            *(request.scores, request.tensors),
        )
        results: list[ImageResult | None] = [None] * len(request.images)
        keys: list[Key | None] = [None] * len(request.images)
        for number, image in enumerate(request.images):
            if not request.tensors and len(image) > limit:
                self._metrics.items_failed.labels("too_large").inc()
                results[number] = ImageResult.failed(
                    ErrorKind.IMAGE_TOO_LARGE,
                    f"the image has {len(image)} bytes, at most {limit} are accepted: make it "
                    "smaller, or raise serving.max_image_bytes of the daemon",
                )
            elif cache is not None:
                keys[number] = key = cache.key(image, engine, options)
                results[number] = cache.get(key)
        return results, keys

    async def _compute(
        self,
        request: ImageRequest,
        keys: Sequence[Key | None],
        model: LoadedModel,
        engine: EngineProcess,
    ) -> list[ImageResult]:
        """The results of all images; ``keys`` are theirs in the cache."""
        name, images = model.entry.version.name, len(request.images)
        with self.admission.admit(request, engine):
            admitted = time.monotonic_ns()
            self._metrics.stage(name, "admit", (admitted - request.received_ns) / 1e9)
            self._metrics.queue(name, images)
            try:
                results = await self._gather(request, keys, engine)
            except _TooBusyError:
                raise self.admission.too_late(request, engine) from None
            finally:
                self._metrics.queue(name, -images)
        trace = call_trace.get()
        if trace is not None:
            trace.computed(model.label, [result.reply for result in results])
        return results

    async def _gather(
        self, request: ImageRequest, keys: Sequence[Key | None], engine: EngineProcess
    ) -> list[ImageResult]:
        in_flight: list[InFlight] = []
        results: list[ImageResult] = []
        try:
            # One after the other, so that an error leaves those before it to be canceled.
            in_flight.extend(
                engine.submit(request, image, cost)
                for image, cost in zip_longest(request.images, request.costs)
            )
            async with asyncio.timeout(_seconds_to_answer(request.deadline_ns)):
                await engine.drained()
                # One await an image, not a task: they are in flight already.
                for item, key in zip(in_flight, keys, strict=True):
                    result = await item.future
                    _raise_if_of_the_request(result)
                    results.append(result)
                    if self._cache is not None and key is not None:
                        self._cache.put(key, result)
        except BaseException as error:
            for item in in_flight:
                item.cancel()
            if isinstance(error, TimeoutError):
                if engine.in_flight > len(in_flight):
                    raise _TooBusyError from None  # alone it would have been in time
                raise _deadline_error() from None
            raise
        return results

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

    def _check_deadline(self, request: ImageRequest) -> None:
        if request.deadline_ns and request.deadline_ns <= time.monotonic_ns():
            self._metrics.refused("deadline")
            raise _deadline_error()


def _decode_costs(images: Sequence[bytes], resolution: int) -> list[DecodeCost]:
    # At least the short side that a JPEG keeps when it is decoded at a fraction of its size: twice
    # that to which it is resized before the crop.
    return [decode_cost(image, 3 * resolution) for image in images]


def _head(request: ImageRequest, model: LoadedModel) -> Head:
    """The resolution head that serves a request. Raises INVALID_FIELD."""
    heads = {head.resolution: head for head in model.entry.manifest.heads}
    default = next(iter(heads))
    head = heads.get(request.resolution or default)
    if head is None:
        raise MultigrainError.field(
            "resolution",
            f"{request.resolution} is not served by {model.label}: use "
            f"{', '.join(map(str, heads))}, or 0 for {default}",
        )
    side = head.resolution
    if request.tensors and any(len(image) != 12 * side * side for image in request.images):
        raise MultigrainError.field(
            "images", f"must each hold 3 x {side} x {side} float32 numbers when preprocessed"
        )
    if request.whitens and head.whitening is None:
        able = [str(head.resolution) for head in heads.values() if head.whitening is not None]
        where = f" at {side} px" if able else ""
        hint = (
            f"use resolution {' or '.join(able)}, or leave it out"
            if able
            else "leave it out, or export the model with whitening_path"
        )
        raise MultigrainError.field("whiten", f"{model.label} has no whitening{where}: {hint}")
    return head


def _top_k(request: ImageRequest, model: LoadedModel) -> int | None:
    if request.top_k is None:
        return None
    # "At most all": more than there are is not an error.
    return min(request.top_k or _DEFAULT_TOP_K, model.entry.manifest.classes)


def _response(
    request: ImageRequest, model: LoadedModel, head: Head, results: Sequence[ImageResult]
) -> ImageResponse:
    manifest, whitening = model.entry.manifest, head.whitening
    size = whitening.size if whitening is not None and request.whitens else manifest.embedding_size
    replies = [result.reply for result in results]
    return ImageResponse(
        model=model.label,
        version=model.entry.version,
        embedding_size=size,
        labels=manifest.labels,
        results=tuple(results),
        times=StageTimes(
            decode=max((reply.decode_ns for reply in replies), default=0),
            queue=max((reply.queue_ns for reply in replies), default=0),
            compute=max((reply.compute_ns for reply in replies), default=0),
            total=time.monotonic_ns() - request.received_ns,
        ),
    )


def _raise_if_of_the_request(result: ImageResult) -> None:
    """Raises for an error of one image that concerns the whole request."""
    error = result.error
    if error is None or error.kind not in _REQUEST_ERRORS:
        return
    if error.kind is ErrorKind.DEADLINE:
        raise _deadline_error()
    if error.kind is ErrorKind.OVERLOADED:
        if not result.reply.where:
            return  # there is not enough memory for this one
        raise _TooBusyError
    raise error


def _seconds_to_answer(deadline_ns: int) -> float | None:
    """How long to wait for an engine so that a refusal still comes in time."""
    if not deadline_ns:
        return None
    seconds = (deadline_ns - time.monotonic_ns()) / 1e9
    return seconds - min(_REFUSAL_SECONDS, seconds / 40)


def _deadline_error() -> MultigrainError:
    return MultigrainError(
        ErrorKind.DEADLINE,
        "the deadline passed before the images were computed: allow more time, or send fewer",
    )
