"""The work of an engine: decoding threads, and the loop that computes batches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from multigrain.engine.answer import encode_vector, probabilities, top_classes
from multigrain.engine.batcher import Batcher, Drop, Item
from multigrain.engine.in_hand import InHand
from multigrain.engine.runtime.base import Runtime
from multigrain.engine.wire import Frame, Result, Submit
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.whitening.file import StoredWhitening

_LOG = logging.getLogger(__name__)

Decode = Callable[[bytes, int], NDArray[np.float32]]
Send = Callable[[list[Frame]], None]


class Worker:
    """Answers every submitted image exactly once, whatever happens to its neighbours.

    Args:
        runtimes: a loaded network for each resolution.
        default_resolution: for images that ask for resolution 0.
        decode: encoded bytes and resolution -> float32 (3, S, S); raises MultigrainError.
        send: takes result frames; called from several threads.
        max_batch: images in a batch at most.
        decode_threads: at least 1.
        whitenings: for the resolutions that have one; nobody asks for whitening at others.
        in_hand: ``max_batch + decode_threads`` slots, where work that begins is noted.
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
        whitenings: Mapping[int, StoredWhitening] | None = None,
        in_hand: InHand | None = None,
    ) -> None:
        self._runtimes = runtimes
        self._whitenings = whitenings or {}
        self._default_resolution = default_resolution
        self._decode = decode
        self._send = send
        slots = max_batch + decode_threads
        self._in_hand = in_hand or InHand(InHand.allocate(slots), slots)
        self._batcher = Batcher(max_batch, 2 * max_batch + decode_threads, self._dropped)
        self._decoders = [
            threading.Thread(
                target=self._decode_loop,
                args=(max_batch + number,),
                name=f"decode-{number}",
                daemon=True,
            )
            for number in range(decode_threads)
        ]

    def start(self) -> None:
        for thread in self._decoders:
            thread.start()

    def submit(self, request: Submit, data: bytes) -> None:
        if request.resolution == 0:
            request = request.model_copy(update={"resolution": self._default_resolution})
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
        while (batch := self._batcher.next_batch()) is not None:
            start = time.monotonic_ns()
            for slot, item in enumerate(batch):
                self._in_hand.take(slot, item.request.id)
            try:
                frames = self._compute(batch)
            except Exception as error:  # one image must not end the loop, whatever a runtime raises
                _LOG.exception("a batch of %d images failed", len(batch))
                frames = self._alone(batch, error)
            elapsed = time.monotonic_ns() - start
            self._send(self._finished(batch, frames, start, elapsed))
            for slot in range(len(batch)):
                self._in_hand.put_down(slot)

    def _compute(self, batch: list[Item]) -> list[Frame]:
        images = np.stack([item.tensor for item in batch if item.tensor is not None])
        resolution = batch[0].request.resolution
        outputs = self._runtimes[resolution].run(images)
        wanted = [row for row, item in enumerate(batch) if _whitens(item)]
        whitened: dict[int, NDArray[np.float32]] = {}
        if wanted:
            rows = self._whitenings[resolution].apply(outputs.embedding[wanted])
            whitened = dict(zip(wanted, rows, strict=True))
        return [
            _answer(item, whitened.get(row, outputs.embedding[row]), outputs.logits[row])
            for row, item in enumerate(batch)
        ]

    def _alone(self, batch: list[Item], error: Exception) -> list[Frame]:
        """Computes each image of a failed batch by itself, so that only the culprit fails."""
        if len(batch) == 1:
            message = "the model could not compute this image; the server's log has the reason"
            return [_failure(batch[0], MultigrainError(ErrorKind.INTERNAL, message))]
        frames: list[Frame] = []
        for item in batch:
            try:
                frames += self._compute([item])
            except Exception as own_error:  # as in compute_loop
                frames += self._alone([item], own_error)
        return frames

    def _finished(
        self, batch: list[Item], frames: list[Frame], start: int, elapsed: int
    ) -> list[Frame]:
        out = []
        for number, (item, frame) in enumerate(zip(batch, frames, strict=True)):
            if not self._batcher.finish(item):
                frame = _dropped(item, Drop.CANCELLED, "batch")
            timing = {
                "decode_ns": item.decode_ns,
                "queue_ns": max(0, start - item.received_ns - item.decode_ns),
                "compute_ns": elapsed,
                "batch_items": len(batch),
                "leads_batch": number == 0,
            }
            out.append(Frame(frame.message.model_copy(update=timing), frame.payload))
        return out

    def _decode_loop(self, slot: int) -> None:
        while (item := self._batcher.next_to_decode()) is not None:
            start = time.monotonic_ns()
            try:
                self._in_hand.take(slot, item.request.id)
                try:
                    item.tensor = self._prepare(item)
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
                self._batcher.decoded(item)

    def _prepare(self, item: Item) -> NDArray[np.float32]:
        """What the network sees of an image, (3, S, S); decoded, unless it came like that."""
        side = item.request.resolution
        if not item.request.tensor:
            return self._decode(item.data, side)
        tensor = np.frombuffer(item.data, "<f4").reshape(3, side, side)
        if not np.isfinite(tensor).all():
            message = "a prepared image holds numbers that are not finite"
            raise MultigrainError(ErrorKind.INVALID_FIELD, message)
        return tensor

    def _refuse(self, item: Item, error: MultigrainError, start: int) -> None:
        item.decode_ns = time.monotonic_ns() - start
        self._batcher.failed(item)
        self._send([_failure(item, error)])

    def _dropped(self, item: Item, why: Drop) -> None:
        self._send([_dropped(item, why, "queue")])


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


def _dropped(item: Item, why: Drop, where: str) -> Frame:
    kind = ErrorKind.CANCELLED if why is Drop.CANCELLED else ErrorKind.DEADLINE
    message = (
        "the caller went away"
        if why is Drop.CANCELLED
        else "the deadline passed before the image reached the model"
    )
    return Frame(
        Result(
            id=item.request.id,
            kind=kind.value,
            message=message,
            where="batch" if where == "batch" else "queue",
            decode_ns=item.decode_ns,
        )
    )
