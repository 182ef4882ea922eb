"""Many images at once with threads: parallel calls, and one stream that survives its connection.

The asyncio counterpart is ``multigrain_client.aio.bulk``.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from multigrain.v1.embedding_pb2 import EmbedRequest
from multigrain_client import methods
from multigrain_client.errors import MultigrainClientError, ServerError
from multigrain_client.images import (
    Batch,
    EmbeddedImage,
    batches_of,
    embedded,
    encode_each,
    with_images,
)
from multigrain_client.retry import BulkRetries
from multigrain_client.streaming import ReplayWindow
from multigrain_client.sync.transport import Transport

if TYPE_CHECKING:
    from multigrain_client.images import Image, Images

    ImageStream: TypeAlias = Iterable[Image]

T = TypeVar("T")


def stream_batches(images: ImageStream, max_images: int) -> Iterator[Batch]:
    """Encodes and batches a stream of images, lazily."""
    return batches_of(encode_each(images), max_images=max_images)


def map_batches(
    call: Callable[[Batch], list[T]], images: Images, batch_size: int, concurrency: int
) -> list[T]:
    """Results of all images in order, with at most ``concurrency`` calls in flight."""
    batches = batches_of(encode_each(images), max_images=batch_size)
    head = list(islice(batches, 2))
    if len(head) < 2:
        # The common case, a single call, needs no threads.
        return call(head[0]) if head else []
    results: list[T] = []
    waiting: deque[Future[list[T]]] = deque()
    pool = ThreadPoolExecutor(concurrency, "multigrain-client")
    try:
        for batch in head:
            waiting.append(pool.submit(copy_context().run, call, batch))
        for batch in batches:
            if len(waiting) >= concurrency:
                results += waiting.popleft().result()
            waiting.append(pool.submit(copy_context().run, call, batch))
        while waiting:
            results += waiting.popleft().result()
    except KeyboardInterrupt:
        # Not for the calls in flight, which may last: closing the client cancels them.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
    return results


class BulkEmbedding:
    """One run of ``embed_stream``.

    A reader thread fills the window from the source, gRPC's thread sends from the window, and the
    caller's thread takes results. Only the caller's thread changes connections, so that the source
    is read exactly once.

    Args:
        transport: makes the calls.
        template: the request without images.
        source: the batches to embed.
        window: maximum number of batches in flight.
    """

    def __init__(
        self, transport: Transport, template: EmbedRequest, source: Iterator[Batch], window: int
    ) -> None:
        self._transport = transport
        self._template = template
        self._source = source
        self._window = ReplayWindow(max(window, 1))
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False
        self._failure: BaseException | None = None
        self._connection = 0
        # The window is stuck: end the connection and continue on a new one.
        self._restarting = False

    def run(self) -> Generator[EmbeddedImage]:
        """Results in input order.

        Raises:
            MultigrainClientError: if the server refuses, or stays unreachable (``BulkRetries``).
        """
        threading.Thread(target=self._read, name="multigrain-embed-stream", daemon=True).start()
        retries = BulkRetries(self._transport.policy)
        try:
            while True:
                try:
                    for results in self._connect():
                        retries.answered()
                        yield from results
                    if self._restarting:
                        continue
                    break
                except MultigrainClientError as error:
                    delay = retries.delay(error)
                    if delay is None:
                        raise
                time.sleep(delay)
            if self._failure is not None:
                raise self._failure
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    def _connect(self) -> Iterator[list[EmbeddedImage]]:
        """Results of one connection, batch by batch."""
        with self._changed:
            self._connection += 1
            self._restarting = False
            requests = self._requests(self._connection, self._window.first)
        responses = self._transport.exchange(methods.EMBED_STREAM, requests)
        with closing(responses):
            for response in responses:
                yield from self._unsent()
                with self._changed:
                    batch = self._window.answered()
                    self._changed.notify_all()
                if batch is None:
                    raise ServerError("EmbedStream: the server sent more responses than requests")
                yield embedded(batch, response)
        yield from self._unsent()
        with self._changed:
            if self._window.at(self._window.first) is not None and not self._restarting:
                raise ServerError(
                    "EmbedStream: the server ended the stream before its last response"
                )

    def _unsent(self) -> Iterator[list[EmbeddedImage]]:
        while True:
            with self._changed:
                batch = self._window.unsent()
                self._changed.notify_all()
            if batch is None:
                return
            yield embedded(batch, None)

    def _read(self) -> None:
        failure: BaseException | None = None
        try:
            for batch in self._source:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or not self._window.full)
                    if self._closed:
                        return
                    self._window.add(batch)
                    self._changed.notify_all()
        # Raised again in the caller's thread: it may come from the caller's own iterable.
        except BaseException as error:
            failure = error
        finally:
            with self._changed:
                self._failure = failure
                self._ended = True
                self._changed.notify_all()

    def _requests(self, connection: int, position: int) -> Iterator[EmbedRequest]:
        while True:
            with self._changed:
                while (
                    not self._closed
                    and not self._ended
                    and self._connection == connection
                    and not self._window.stuck
                    and self._window.at(position) is None
                ):
                    self._changed.wait()
                if self._closed or self._connection != connection:
                    return
                batch = self._window.at(position)
                if batch is None:
                    self._restarting = not self._ended
                    return
            position += 1
            if batch.images:
                yield with_images(self._template, batch)
