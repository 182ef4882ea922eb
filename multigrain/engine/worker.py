"""The work of an engine: the loop that computes batches, and the answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from multigrain.engine.batcher import Batcher
from multigrain.engine.batching import BatchLatencyEstimator, DropReason, Item, Limits, Schedule
from multigrain.engine.decode_lanes import DecodeLanes
from multigrain.engine.decoders import ImageDecoder
from multigrain.engine.lanes import Lane
from multigrain.engine.protocol import EmbeddingOptions, Frame, InFlightSlots, Result, Submit
from multigrain.engine.runtimes.base import Outputs, Runtime
from multigrain.engine.shared_images import LargeImage
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.memory import exit_if_out_of_memory
from multigrain.whitening import StoredWhitening

_LOG = logging.getLogger(__name__)
_FP16_MAX = float(np.finfo(np.float16).max)

Send = Callable[[list[Frame]], None]


@dataclass(frozen=True, slots=True)
class EncodedVector:
    """The numbers of a vector, little-endian; ``scale`` is set for int8 only."""

    data: bytes
    scale: float = 0.0


@dataclass(frozen=True, slots=True)
class TopClasses:
    """``count`` classes, most probable first: int32 ids, then float32 probabilities."""

    data: bytes
    count: int


def encode_vector(embedding: NDArray[np.float32], options: EmbeddingOptions) -> EncodedVector:
    """Normalizes and converts one embedding.

    int8 is symmetric with one scale per vector (value = byte * scale, scale = max|value| / 127),
    so the error of a number is at most scale / 2.

    Args:
        embedding: float32 (C,).
        options: whether to normalize, and the type to convert to.

    Raises:
        MultigrainError: NOT_FINITE if a number is not finite, or does not fit fp16.
    """
    if not np.isfinite(embedding).all():
        raise MultigrainError(
            ErrorKind.NOT_FINITE, "the model's embedding of this image has non-finite numbers"
        )
    vector = embedding.astype(np.float32, copy=False)
    if options.normalize:
        # A float32 sum of 2048 large squares may overflow.
        norm = float(np.linalg.norm(vector.astype(np.float64)))
        vector = (vector / (norm or 1.0)).astype(np.float32)
    if options.dtype == "fp32":
        return EncodedVector(vector.astype("<f4", copy=False).tobytes())
    peak = float(np.abs(vector).max(initial=0.0))
    if options.dtype == "fp16":
        if peak > _FP16_MAX:
            raise MultigrainError(
                ErrorKind.NOT_FINITE,
                f"the embedding has a component of {peak:.3g}, which fp16 cannot represent: "
                "set normalize, or use fp32",
            )
        return EncodedVector(vector.astype("<f2").tobytes())
    scale = float(np.float32(peak / 127)) or 1.0
    return EncodedVector(np.rint(vector / scale).clip(-127, 127).astype(np.int8).tobytes(), scale)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The softmax of one row of logits (K,).

    Raises:
        MultigrainError: NOT_FINITE if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise MultigrainError(
            ErrorKind.NOT_FINITE, "the model's class scores of this image have non-finite numbers"
        )
    shifted = logits.astype(np.float64)
    powers = np.exp(shifted - shifted.max())
    return powers / powers.sum()


def top_classes(scores: NDArray[np.float64], top_k: int) -> TopClasses:
    """The ``top_k`` most probable classes (at most all) of one row of probabilities (K,)."""
    # Stable, so that equal scores come in the order of their class ids.
    best = np.argsort(-scores, kind="stable")[:top_k]
    data = best.astype("<i4").tobytes() + scores[best].astype("<f4").tobytes()
    return TopClasses(data, len(best))


class Worker:
    """Answers every submitted image exactly once, even if others in its batch fail.

    Attributes:
        images_per_second: estimated throughput at the default resolution.
        busy_items: with this many images in flight the network is never idle.

    Args:
        runtimes: a loaded network for each resolution.
        default_resolution: of images with resolution 0.
        decoders: of each lane, at least one.
        send: takes result frames; called from several threads.
        max_batch: images in a batch at most.
        decode_wall_seconds: that decoding an image may take on a busy machine.
        latencies: measured batch latency by resolution; without them it is learned.
        whitenings: by resolution; the daemon refuses whitening at others.
        inflight: ``max_batch`` slots.
    """

    def __init__(
        self,
        runtimes: Mapping[int, Runtime],
        default_resolution: int,
        decoders: Mapping[Lane, Sequence[ImageDecoder]],
        send: Send,
        *,
        max_batch: int,
        decode_wall_seconds: float = 30.0,
        latencies: Mapping[int, BatchLatencyEstimator] | None = None,
        whitenings: Mapping[int, StoredWhitening] | None = None,
        inflight: InFlightSlots | None = None,
    ) -> None:
        self._runtimes = runtimes
        self._whitenings = whitenings or {}
        self._default_resolution = default_resolution
        self._send = send
        latencies = latencies or {
            resolution: BatchLatencyEstimator(min(runtime.best_batch, max_batch))
            for resolution, runtime in runtimes.items()
        }
        self._inflight = inflight or InFlightSlots(InFlightSlots.allocate(max_batch), max_batch)
        self.images_per_second = latencies[default_resolution].images_per_second
        self.busy_items = 2 * max(latency.best_batch for latency in latencies.values())
        limits = Limits(max_batch, decode_ahead=self.busy_items + sum(map(len, decoders.values())))
        self._batcher = Batcher(Schedule(limits, latencies), self._send_dropped)
        self._lanes = DecodeLanes(
            self._batcher,
            decoders,
            decode_wall_seconds,
            self._refuse,
            self._send_dropped,
        )

    def start(self) -> None:
        """Starts the decoding threads. The network runs in the caller of :meth:`compute_loop`."""
        self._lanes.start()

    def submit(self, request: Submit, data: bytes | LargeImage) -> None:
        """Queues an image; its answer is sent later."""
        if request.resolution == 0:
            request.resolution = self._default_resolution
        item = Item(request, data)
        if request.resolution not in self._runtimes:
            known = ", ".join(map(str, sorted(self._runtimes)))
            message = f"resolution {request.resolution} is not in the bundle, which has {known}"
            self._send([_failure(item, MultigrainError(ErrorKind.INVALID_FIELD, message))])
            return
        self._batcher.submit(item)

    def cancel(self, item_id: int) -> None:
        """Drops an image, if it is not computed yet."""
        self._batcher.cancel(item_id)

    def close(self) -> None:
        """Makes :meth:`compute_loop` return."""
        self._batcher.close()

    def compute_loop(self) -> None:
        """Computes batches in the calling thread until closed."""
        while (work := self._batcher.next_batch()) is not None:
            start = time.monotonic_ns()
            for slot, item in enumerate(work):
                self._inflight.record(slot, item.request.id)
            try:
                frames = self._compute(work)
            except Exception as error:  # one image must not end the loop, whatever a runtime raises
                exit_if_out_of_memory(error)
                _LOG.exception("batch failed: images=%d", len(work))
                frames = self._one_by_one(work, error)
            elapsed = time.monotonic_ns() - start
            self._send(self._finish_batch(work, frames, start, elapsed))
            for slot in range(len(work)):
                self._inflight.clear(slot)

    def _compute(self, items: list[Item]) -> list[Frame]:
        resolution = items[0].request.resolution
        outputs = _run(self._runtimes[resolution], items)
        to_whiten = [row for row, item in enumerate(items) if _wants_whitening(item)]
        whitened: dict[int, NDArray[np.float32]] = {}
        if to_whiten:
            rows = self._whitenings[resolution].apply(outputs.embedding[to_whiten])
            whitened = dict(zip(to_whiten, rows, strict=True))
        return [
            _answer(item, whitened.get(row, outputs.embedding[row]), outputs.logits[row])
            for row, item in enumerate(items)
        ]

    def _one_by_one(self, items: list[Item], error: Exception) -> list[Frame]:
        """Computes each image of a failed batch alone, so that only the faulty one fails."""
        if len(items) == 1:
            message = "the model could not compute this image; see the server's log"
            return [_failure(items[0], MultigrainError(ErrorKind.INTERNAL, message))]
        frames: list[Frame] = []
        for item in items:
            try:
                frames += self._compute([item])
            except Exception as own_error:  # as in compute_loop
                frames += self._one_by_one([item], own_error)
        return frames

    def _finish_batch(
        self, batch: list[Item], frames: list[Frame], start: int, elapsed: int
    ) -> list[Frame]:
        out = []
        cancelled = self._batcher.done(batch, elapsed / 1e9)
        for number, (item, frame) in enumerate(zip(batch, frames, strict=True)):
            if item in cancelled:
                frame = _dropped(item, DropReason.CANCELLED, "batch")
            result = frame.message
            assert isinstance(result, Result)
            result.decode_ns = item.decode_ns
            result.queue_ns = max(0, start - item.received_ns - item.decode_ns)
            result.compute_ns = elapsed
            result.batch_items = len(batch)
            result.first_in_batch = number == 0
            out.append(frame)
        return out

    def _refuse(self, item: Item, error: MultigrainError) -> None:
        self._send([_failure(item, error)])

    def _send_dropped(self, item: Item, reason: DropReason) -> None:
        self._send([_dropped(item, reason, "queue")])


def _run(runtime: Runtime, items: list[Item]) -> Outputs:
    scores = any(item.request.top_k or item.request.scores for item in items)
    pixels = [item.pixels for item in items if item.pixels is not None]
    if len(pixels) == len(items):
        return runtime.run_pixels(pixels, scores=scores)
    tensors = [
        runtime.normalized(item.pixels) if item.pixels is not None else item.tensor
        for item in items
    ]
    images = np.stack([tensor for tensor in tensors if tensor is not None])
    return runtime.run(images, scores=scores)


def _wants_whitening(item: Item) -> bool:
    return item.request.vector is not None and item.request.vector.whiten


def _answer(item: Item, embedding: NDArray[np.float32], logits: NDArray[np.float32]) -> Frame:
    request = item.request
    vector, scale, vector_bytes, classes, scores = b"", 0.0, 0, b"", b""
    count = 0
    try:
        if request.vector is not None:
            encoded = encode_vector(embedding, request.vector)
            vector, scale, vector_bytes = encoded.data, encoded.scale, len(encoded.data)
        if request.top_k or request.scores:
            by_class = probabilities(logits)
            if request.top_k:
                top = top_classes(by_class, request.top_k)
                classes, count = top.data, top.count
            if request.scores:
                scores = by_class.astype("<f4").tobytes()
    except MultigrainError as error:
        return _failure(item, error)
    result = Result(
        id=request.id,
        vector_bytes=vector_bytes,
        scale=scale,
        classes=count,
        scores=len(scores) // 4,
        harm=item.harm,
    )
    return Frame(result, vector + classes + scores)


def _failure(item: Item, error: MultigrainError) -> Frame:
    return Frame(
        Result(
            id=item.request.id,
            error=error.kind,
            message=error.message[:2000],
            decode_ns=item.decode_ns,
            harm=item.harm,
        )
    )


_DROPPED = {
    DropReason.CANCELLED: (ErrorKind.CANCELLED, "the request was canceled by the client"),
    DropReason.DEADLINE: (
        ErrorKind.DEADLINE,
        "the image could not be computed before its deadline",
    ),
    DropReason.OVERLOADED: (
        ErrorKind.OVERLOADED,
        "the queue is too long for the image to meet its deadline",
    ),
}


def _dropped(item: Item, reason: DropReason, where: Literal["queue", "batch"]) -> Frame:
    error, message = _DROPPED[reason]
    return Frame(
        Result(
            id=item.request.id,
            error=error,
            message=message,
            where=where,
            decode_ns=item.decode_ns,
            harm=item.harm,
        )
    )
