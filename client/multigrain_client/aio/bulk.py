"""Many images at once with asyncio: parallel calls, and one stream that survives its connection.

The blocking counterpart, ``multigrain_client.sync.bulk``, does the same with threads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
)
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from multigrain.v1.embedding_pb2 import EmbedRequest
from multigrain_client import methods
from multigrain_client.aio.transport import AsyncTransport
from multigrain_client.errors import MultigrainClientError, ServerError
from multigrain_client.images import (
    Batch,
    Batcher,
    EmbeddedImage,
    batches_of,
    embedded,
    encode_each,
    encode_item,
    with_images,
)
from multigrain_client.retry import BulkRetries
from multigrain_client.streaming import ReplayWindow

if TYPE_CHECKING:
    from multigrain_client.images import Image, Images

    ImageStream: TypeAlias = Iterable[Image] | AsyncIterable[Image]

T = TypeVar("T")


async def iterate(items: Iterator[T]) -> AsyncIterator[T]:
    """Iterates in a thread, because the iterator may block (files, encoders, the caller's own)."""
    end = object()
    while True:
        item = await asyncio.to_thread(next, items, end)
        if item is end:
            return
        yield item  # type: ignore[misc]  # not the sentinel


async def stream_batches(images: ImageStream, max_images: int) -> AsyncIterator[Batch]:
    """Encodes and batches a stream of images, lazily and in threads."""
    if not isinstance(images, AsyncIterable):
        async for batch in iterate(batches_of(encode_each(images), max_images=max_images)):
            yield batch
        return
    batcher = Batcher(max_images)
    index = 0
    async for image in images:
        filled = batcher.add(await asyncio.to_thread(encode_item, index, image))
        index += 1
        if filled is not None:
            yield filled
    last = batcher.flush()
    if last is not None:
        yield last


async def map_batches(
    call: Callable[[Batch], Awaitable[list[T]]], images: Images, batch_size: int, concurrency: int
) -> list[T]:
    """Results of all images in order, with at most ``concurrency`` calls in flight."""
    results: list[T] = []
    waiting: deque[asyncio.Future[list[T]]] = deque()
    try:
        async for batch in iterate(batches_of(encode_each(images), max_images=batch_size)):
            if len(waiting) >= concurrency:
                results += await waiting.popleft()
            waiting.append(asyncio.ensure_future(call(batch)))
        while waiting:
            results += await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return results


class AsyncBulkEmbedding:
    """One run of ``embed_stream``.

    A separate task reads the source: gRPC cancels the reader of a broken connection, and must not
    do so in the middle of an item, which would be lost.

    Args:
        transport: makes the calls.
        template: the request without images.
        source: the batches to embed.
        window: maximum number of batches in flight.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        template: EmbedRequest,
        source: AsyncIterator[Batch],
        window: int,
    ) -> None:
        self._transport = transport
        self._template = template
        self._source = source
        self._window = ReplayWindow(max(window, 1))
        self._changed = asyncio.Condition()
        self._ended = False
        # The window is stuck: end the connection and continue on a new one.
        self._restarting = False
        self._failure: BaseException | None = None

    async def run(self) -> AsyncGenerator[EmbeddedImage]:
        """Results in input order.

        Raises:
            MultigrainClientError: if the server refuses, or stays unreachable (``BulkRetries``).
        """
        reader = asyncio.create_task(self._read())
        retries = BulkRetries(self._transport.policy)
        try:
            while True:
                try:
                    async with aclosing(self._connect()) as connection:
                        async for results in connection:
                            retries.answered()
                            for result in results:
                                yield result
                    if self._restarting:
                        continue
                    break
                except MultigrainClientError as error:
                    delay = retries.delay(error)
                    if delay is None:
                        raise
                await asyncio.sleep(delay)
            if self._failure is not None:
                raise self._failure
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _connect(self) -> AsyncGenerator[list[EmbeddedImage], None]:
        """Results of one connection, batch by batch."""
        self._restarting = False
        requests = self._requests(self._window.first)
        responses = self._transport.exchange(methods.EMBED_STREAM, requests)
        async with aclosing(responses):
            async for response in responses:
                async for results in self._unsent():
                    yield results
                batch = self._window.answered()
                await self._notify()
                if batch is None:
                    raise ServerError("EmbedStream: the server sent more responses than requests")
                yield embedded(batch, response)
        async for results in self._unsent():
            yield results
        if self._window.at(self._window.first) is not None and not self._restarting:
            raise ServerError("EmbedStream: the server ended the stream before its last response")

    async def _unsent(self) -> AsyncGenerator[list[EmbeddedImage], None]:
        while (batch := self._window.unsent()) is not None:
            await self._notify()
            yield embedded(batch, None)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _read(self) -> None:
        try:
            async for batch in self._source:
                async with self._changed:
                    await self._changed.wait_for(lambda: not self._window.full)
                    self._window.add(batch)
                    self._changed.notify_all()
        except asyncio.CancelledError:
            raise
        # Raised again in the caller's task: it may come from the caller's own iterable.
        except Exception as error:
            self._failure = error
        finally:
            self._ended = True
            await self._notify()

    async def _requests(self, position: int) -> AsyncIterator[EmbedRequest]:
        while True:
            async with self._changed:
                while not (
                    self._ended or self._window.stuck or self._window.at(position) is not None
                ):
                    await self._changed.wait()
            batch = self._window.at(position)
            if batch is None:
                self._restarting = not self._ended
                return
            position += 1
            if batch.images:
                yield with_images(self._template, batch)
