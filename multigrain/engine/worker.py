"""From the network's output rows to the bytes that are sent."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multigrain.engine.batching import Batcher, Limits
from multigrain.engine.inflight import InHand
from multigrain.engine.protocol import Frame, Result, Submit, VectorWants
from multigrain.engine.runtimes.base import Outputs, Pixels, Runtime
from multigrain.engine.scheduling import Drop, Item, Pace
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.memory import exit_if_memory_exhausted, exit_if_out_of_memory
from multigrain.whitening import StoredWhitening

_FP16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class EncodedVector:
    """Little-endian numbers of a vector; ``scale`` is 0 but for int8."""

    data: bytes
    scale: float = 0.0


@dataclass(frozen=True, slots=True)
class TopClasses:
    """``count`` classes, most probable first: int32 ids, then float32 probabilities."""

    data: bytes
    count: int


def encode_vector(embedding: NDArray[np.float32], wants: VectorWants) -> EncodedVector:
    """Normalises and converts one embedding (C,).

    int8 is symmetric with one scale a vector (value = byte * scale, scale = max|value| / 127),
    so the error of a number is at most scale / 2.

    Raises:
        MultigrainError: NOT_FINITE if a number is not finite, or does not fit fp16.
    """
    if not np.isfinite(embedding).all():
        raise MultigrainError(
            ErrorKind.NOT_FINITE, "the model's embedding of this image is not finite"
        )
    vector = embedding.astype(np.float32, copy=False)
    if wants.normalize:
        # float64 for the norm: a sum of 2048 squares of large numbers may overflow float32.
        norm = float(np.linalg.norm(vector.astype(np.float64)))
        vector = (vector / (norm or 1.0)).astype(np.float32)
    if wants.dtype == "fp32":
        return EncodedVector(vector.astype("<f4", copy=False).tobytes())
    peak = float(np.abs(vector).max(initial=0.0))
    if wants.dtype == "fp16":
        if peak > _FP16_MAX:
            raise MultigrainError(
                ErrorKind.NOT_FINITE,
                f"the embedding reaches {peak:.3g}, more than fp16 holds: "
                "ask for normalize or for fp32",
            )
        return EncodedVector(vector.astype("<f2").tobytes())
    scale = float(np.float32(peak / 127)) or 1.0
    return EncodedVector(np.rint(vector / scale).clip(-127, 127).astype(np.int8).tobytes(), scale)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The softmax of one row of logits (K,).

    Raises:
        MultigrainError: NOT_FINITE.
    """
    if not np.isfinite(logits).all():
        raise MultigrainError(
            ErrorKind.NOT_FINITE, "the model's class scores of this image are not finite"
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


# MERGED: The work of an engine: decoding threads, and the loop that computes batches.


_LOG = logging.getLogger(__name__)

Decode = Callable[[bytes, int], Pixels]
Send = Callable[[list[Frame]], None]


class Worker:
    """Answers every submitted image exactly once, whatever happens to its neighbours.

    ``images_per_second`` at the default resolution is what its paces promise; with
    ``busy_items`` images in work, the network is busy all the time.

    Args:
        runtimes: a loaded network for each resolution.
        default_resolution: for images that ask for resolution 0.
        decode: encoded bytes and resolution -> uint8 (S, S, 3); raises MultigrainError.
        send: takes result frames; called from several threads.
        max_batch: images in a batch at most.
        decode_threads: at least 1.
        paces: how fast the networks are; those that are not known yet are found out.
        whitenings: for the resolutions that have one; nobody asks for whitening at others.
        in_hand: ``max_batch`` slots, then one for each decoding thread, where work that
            begins is noted.
    """

    def __init__(
        self,
        runtimes: Mapping[int, Runtime],
        default_resolution: int,
        decode: Decode,
        send: Send,
        *,
        max_batch: int,
        decode_threads: int,
        paces: Mapping[int, Pace] | None = None,
        whitenings: Mapping[int, StoredWhitening] | None = None,
        in_hand: InHand | None = None,
    ) -> None:
        self._runtimes = runtimes
        self._whitenings = whitenings or {}
        self._default_resolution = default_resolution
        self._decode = decode
        self._send = send
        paces = paces or {
            side: Pace(min(runtime.best_batch, max_batch)) for side, runtime in runtimes.items()
        }
        slots = max_batch + decode_threads
        self._in_hand = in_hand or InHand(InHand.allocate(slots), slots)
        pace = paces[default_resolution]
        self.images_per_second = pace.rate
        self.busy_items = 2 * max(pace.best for pace in paces.values())
        ahead = self.busy_items + decode_threads
        self._batcher = Batcher(Limits(max_batch, ahead), paces, self._dropped)
        self._threads = [
            threading.Thread(
                target=self._decode_loop,
                args=(max_batch + number,),
                name=f"decode-{number}",
                daemon=True,
            )
            for number in range(decode_threads)
        ]

    def start(self) -> None:
        """Starts the decoding threads; the network is for :meth:`compute_loop`'s caller."""
        for thread in self._threads:
            thread.start()

    def submit(self, request: Submit, data: bytes) -> None:
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
        self._batcher.cancel(item_id)

    def hold(self, items: int) -> None:
        self._batcher.hold(items)

    def close(self) -> None:
        """Makes :meth:`compute_loop` return."""
        self._batcher.close()

    def compute_loop(self) -> None:
        """Computes batches in the calling thread until closed."""
        while (work := self._batcher.next_work()) is not None:
            if isinstance(work, Item):
                self._fetch(work, 0, by_computing=True)
                continue
            start = time.monotonic_ns()
            for slot, item in enumerate(work):
                self._in_hand.take(slot, item.request.id)
            try:
                frames = self._compute(work)
            except Exception as error:  # one image must not end the loop, whatever a runtime raises
                exit_if_out_of_memory(error)
                _LOG.exception("a batch of %d images failed", len(work))
                frames = self._one_by_one(work, error)
            elapsed = time.monotonic_ns() - start
            self._send(self._finished(work, frames, start, elapsed))
            for slot in range(len(work)):
                self._in_hand.put_down(slot)

    def _compute(self, items: list[Item]) -> list[Frame]:
        resolution = items[0].request.resolution
        outputs = _run(self._runtimes[resolution], items)
        wanted = [row for row, item in enumerate(items) if _whitens(item)]
        whitened: dict[int, NDArray[np.float32]] = {}
        if wanted:
            rows = self._whitenings[resolution].apply(outputs.embedding[wanted])
            whitened = dict(zip(wanted, rows, strict=True))
        return [
            _answer(item, whitened.get(row, outputs.embedding[row]), outputs.logits[row])
            for row, item in enumerate(items)
        ]

    def _one_by_one(self, items: list[Item], error: Exception) -> list[Frame]:
        """Computes each image of a failed batch by itself, so that only the culprit fails."""
        if len(items) == 1:
            message = "the model could not compute this image; the server's log has the reason"
            return [_failure(items[0], MultigrainError(ErrorKind.INTERNAL, message))]
        frames: list[Frame] = []
        for item in items:
            try:
                frames += self._compute([item])
            except Exception as own_error:  # as in compute_loop
                frames += self._one_by_one([item], own_error)
        return frames

    def _finished(
        self, batch: list[Item], frames: list[Frame], start: int, elapsed: int
    ) -> list[Frame]:
        out = []
        gone = self._batcher.done(batch, elapsed / 1e9)
        for number, (item, frame) in enumerate(zip(batch, frames, strict=True)):
            if item in gone:
                frame = _dropped(item, Drop.CANCELLED, "batch")
            result = frame.message
            assert isinstance(result, Result)
            result.decode_ns = item.decode_ns
            result.queue_ns = max(0, start - item.received_ns - item.decode_ns)
            result.compute_ns = elapsed
            result.batch_items = len(batch)
            result.leads_batch = number == 0
            out.append(frame)
        return out

    def _decode_loop(self, slot: int) -> None:
        while (item := self._batcher.next_to_decode()) is not None:
            self._fetch(item, slot, by_computing=False)

    def _fetch(self, item: Item, slot: int, *, by_computing: bool) -> None:
        """Makes of an image what the network takes, or refuses it."""
        start = time.monotonic_ns()
        try:
            self._in_hand.take(slot, item.request.id)
            try:
                self._prepare(item)
            except Exception as error:
                exit_if_memory_exhausted(error)  # while it is noted whose image it was
                raise
            finally:
                self._in_hand.put_down(slot)
        except MultigrainError as error:
            self._refuse(item, error, start)
        except Exception as error:  # a decoder's surprise costs this image, not the thread
            _LOG.exception("an image could not be decoded")
            message = f"the image could not be decoded ({type(error).__name__})"
            self._refuse(item, MultigrainError(ErrorKind.IMAGE_UNREADABLE, message), start)
        else:
            item.data = b""
            item.decode_ns = time.monotonic_ns() - start
            self._batcher.decoded(item, by_computing=by_computing)

    def _prepare(self, item: Item) -> None:
        """Sets the pixels; or the tensor, if the image came prepared."""
        side = item.request.resolution
        if not item.request.tensor:
            item.pixels = self._decode(item.data, side)
            return
        tensor = np.frombuffer(item.data, "<f4").reshape(3, side, side)
        if not np.isfinite(tensor).all():
            message = "a prepared image holds numbers that are not finite"
            raise MultigrainError(ErrorKind.INVALID_FIELD, message)
        item.tensor = tensor

    def _refuse(self, item: Item, error: MultigrainError, start: int) -> None:
        item.decode_ns = time.monotonic_ns() - start
        self._batcher.failed(item)
        self._send([_failure(item, error)])

    def _dropped(self, item: Item, why: Drop) -> None:
        self._send([_dropped(item, why, "queue")])


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


def _whitens(item: Item) -> bool:
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
            every = probabilities(logits)
            if request.top_k:
                top = top_classes(every, request.top_k)
                classes, count = top.data, top.count
            if request.scores:
                scores = every.astype("<f4").tobytes()
    except MultigrainError as error:
        return _failure(item, error)
    result = Result(
        id=request.id,
        vector_bytes=vector_bytes,
        scale=scale,
        classes=count,
        scores=len(scores) // 4,
    )
    return Frame(result, vector + classes + scores)


def _failure(item: Item, error: MultigrainError) -> Frame:
    return Frame(
        Result(
            id=item.request.id,
            kind=error.kind.value,
            message=error.message[:2000],
            decode_ns=item.decode_ns,
        )
    )


_DROPS = {
    Drop.CANCELLED: (ErrorKind.CANCELLED, "the caller went away"),
    Drop.DEADLINE: (ErrorKind.DEADLINE, "the image could not be computed before the deadline"),
    Drop.BUSY: (ErrorKind.OVERLOADED, "there is more before the image than its deadline allows"),
}


def _dropped(item: Item, why: Drop, where: str) -> Frame:
    kind, message = _DROPS[why]
    return Frame(
        Result(
            id=item.request.id,
            kind=kind.value,
            message=message,
            where="batch" if where == "batch" else "queue",
            decode_ns=item.decode_ns,
        )
    )
