"""Computes the images of requests, by whichever API they came: one core for all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
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
from multigrain_server.serving.pacing import Pacing
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


@dataclass(slots=True)
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
    results: Sequence[ImageResult]
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
        pacing: delays clients whose images come to nothing.
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
        self.pacing = Pacing()
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
        client, images = request.client, request.images
        try:
            response = await self._infer(request)
        except BaseException as error:
            # A client cannot help it if the engine has ended or the server drains.
            if not (isinstance(error, MultigrainError) and error.kind is ErrorKind.UNAVAILABLE):
                self.pacing.count(client, [], list(map(len, images)))
            raise
        failed = [result.reply.error is not None for result in response.results]
        if any(failed) or self.pacing.counts(client):
            sizes: tuple[list[int], list[int]] = ([], [])
            for image, wasted in zip(images, failed, strict=True):
                sizes[wasted].append(len(image))
            self.pacing.count(client, *sizes)
        return response

    async def _infer(self, request: ImageRequest) -> ImageResponse:
        self._check_images(request.images)
        model = self._catalog.route(request.model)
        try:
            head = _head(request, model)
            self._check_deadline(request)
            size = sum(map(len, request.images))
            if self._cache is None:
                # Before the time is spent to look at the images.
                self.admission.check_room(request, model.engine)
            # Larger ones are refused without a look at them.
            limit = 0 if request.tensors else self._config.max_image_bytes
            examined = request.images
            if size > limit:
                examined = [image if len(image) <= limit else b"" for image in examined]
                size = sum(map(len, examined))
            if request.tensors:
                request.costs = ()  # nothing is decoded
            elif size <= _EXAMINED_AT_ONCE:
                request.costs = _decode_costs(examined, head.resolution)
            else:
                request.costs = await asyncio.get_running_loop().run_in_executor(
                    self._examiners, _decode_costs, examined, head.resolution
                )
                model = self._catalog.route(request.model)  # it may have been replaced
                head = _head(request, model)
                self._check_deadline(request)
            request.top_k = _top_k(request, model)
            request.caller = request.caller or new_caller()
            request.penalized = self.penalties.active(request.client)
            request.on_harm = partial(self.penalties.penalize, request.client)
            # Nothing awaits from here to the submission: a model that was routed to is not ended
            # before it has the images.
            results = await self._results(request, model)
        except BaseException:
            model.statistics.fail.add(time.monotonic_ns() - request.received_ns)
            raise
        response = _response(request, model, head, results)
        succeeded = sum(result.reply.error is None for result in results)
        model.statistics.answered(succeeded, response.times)
        return response

    def encoded(self, response: ImageResponse, seconds: float) -> None:
        """Counts how long it took to encode a response as a message."""
        self._metrics.stages(response.version.name).encode.observe(seconds)
        model = self._catalog.loaded.get(response.version)
        if model is not None:
            model.statistics.encode.add(int(seconds * 1e9))

    async def _results(self, request: ImageRequest, model: LoadedModel) -> list[ImageResult]:
        """The results of all images, in their order."""
        engine = model.engine
        known, keys = self._known(request, engine)
        if not known and self._cache is None:
            return await self._compute(request, model, engine)
        missing = [number for number in range(len(request.images)) if number not in known]
        if missing:
            rest = replace(
                request,
                images=[request.images[number] for number in missing],
                costs=[request.costs[number] for number in missing] if request.costs else (),
            )
            for number, result in zip(
                missing, await self._compute(rest, model, engine), strict=True
            ):
                known[number] = result
                if self._cache is not None:
                    self._cache.put(keys[number], result)
        return [known[number] for number in range(len(request.images))]

    def _known(
        self, request: ImageRequest, engine: EngineProcess
    ) -> tuple[dict[int, ImageResult], dict[int, Key]]:
        """Results that need not be computed, and keys in the cache, if there is one, by the number
        of the image."""
        known: dict[int, ImageResult] = {}
        keys: dict[int, Key] = {}
        limit, cache = self._config.max_image_bytes, self._cache
        if not request.tensors:
            for number, image in enumerate(request.images):
                if len(image) > limit:
                    self._metrics.items_failed.labels("too_large").inc()
                    known[number] = ImageResult.failed(
                        ErrorKind.IMAGE_TOO_LARGE,
                        f"the image has {len(image)} bytes, at most {limit} are accepted: make it "
                        "smaller, or raise serving.max_image_bytes of the daemon",
                    )
        if cache is not None:
            options = (
                *(request.resolution, request.vector, request.top_k),
                *(request.scores, request.tensors),
            )
            for number, image in enumerate(request.images):
                if number in known:
                    continue
                keys[number] = key = cache.key(image, engine, options)
                if (result := cache.get(key)) is not None:
                    known[number] = result
        return known, keys

    async def _compute(
        self, request: ImageRequest, model: LoadedModel, engine: EngineProcess
    ) -> list[ImageResult]:
        """Has all images computed."""
        name, images = model.entry.version.name, len(request.images)
        with self.admission.admit(request, engine) as image_answered:
            admitted = time.monotonic_ns()
            self._metrics.stages(name).admit.observe((admitted - request.received_ns) / 1e9)
            self._metrics.queue(name, images)
            try:
                results = await self._gather(request, engine, image_answered)
            except _TooBusyError:
                raise self.admission.too_late(request, engine) from None
            finally:
                self._metrics.queue(name, -images)
        trace = call_trace.get()
        if trace is not None:
            trace.computed(model.label, [result.reply for result in results])
        return results

    async def _gather(
        self, request: ImageRequest, engine: EngineProcess, image_answered: Callable[[], None]
    ) -> list[ImageResult]:
        in_flight: list[InFlight] = []
        timer: asyncio.TimerHandle | None = None
        try:
            # One after the other, so that an error leaves those before it to be canceled.
            for image, cost in zip_longest(request.images, request.costs):
                in_flight.append(engine.submit(request, image, cost))
            if request.deadline_ns:
                timer = asyncio.get_running_loop().call_later(
                    _seconds_to_answer(request.deadline_ns), _expire, in_flight
                )
            results = []
            # One await an image, not a task: they are in flight already.
            for item in in_flight:
                result = await item.future
                if result.reply.error is not None:
                    _raise_if_of_the_request(result)
                results.append(result)
                if len(results) < len(in_flight):
                    image_answered()
            return results
        except BaseException as error:
            for item in in_flight:
                item.cancel()
            if isinstance(error, TimeoutError):
                if engine.in_flight > len(in_flight):
                    raise _TooBusyError from None  # alone it would have been in time
                raise _deadline_error() from None
            raise
        finally:
            if timer is not None:
                timer.cancel()

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
    heads = model.heads
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
    decode = queue = compute = 0
    for result in results:
        reply = result.reply
        decode = max(decode, reply.decode_ns)
        queue = max(queue, reply.queue_ns)
        compute = max(compute, reply.compute_ns)
    return ImageResponse(
        model=model.label,
        version=model.entry.version,
        embedding_size=size,
        labels=manifest.labels,
        results=results,
        times=StageTimes(
            decode=decode,
            queue=queue,
            compute=compute,
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


def _seconds_to_answer(deadline_ns: int) -> float:
    """How long to wait for an engine so that a refusal still comes in time."""
    seconds = (deadline_ns - time.monotonic_ns()) / 1e9
    return seconds - min(_REFUSAL_SECONDS, seconds / 40)


def _expire(in_flight: Sequence[InFlight]) -> None:
    """Ends the wait for the images of a request. A timer: ``asyncio.timeout`` takes longer."""
    for item in in_flight:
        if not item.future.done():
            item.future.set_exception(TimeoutError())
            item.future.exception()  # marks it as read: only the first is waited for


def _deadline_error() -> MultigrainError:
    return MultigrainError(
        ErrorKind.DEADLINE,
        "the deadline passed before the images were computed: allow more time, or send fewer",
    )
