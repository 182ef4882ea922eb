"""Bulk embedding over one bidirectional stream that survives its connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from multigrain.v1.embedding_pb2 import EmbedRequest
from multigrain_client import methods
from multigrain_client.aio.transport import AsyncTransport
from multigrain_client.answers import EmbeddedImage, EmbedOptions, embedded
from multigrain_client.batches import Batch
from multigrain_client.errors import MultigrainClientError, ServerError
from multigrain_client.retry import BulkRetries
from multigrain_client.window import ReplayWindow


class AsyncBulkEmbedding:
    """One run of ``embed_stream``.

    A task of its own reads the source, so that gRPC, which cancels the reader of a broken
    connection, cannot cancel it in the middle of an item and lose that item.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        options: EmbedOptions,
        source: AsyncIterator[Batch],
        window: int,
    ) -> None:
        self._transport = transport
        self._options = options
        self._source = source
        self._window = ReplayWindow(max(window, 1))
        self._changed = asyncio.Condition()
        self._ended = False
        # The connection ends because the window is stuck, and another one is to follow.
        self._resting = False
        self._failure: BaseException | None = None

    async def run(self) -> AsyncGenerator[EmbeddedImage]:
        """Raises:
        MultigrainClientError: when the server refuses, or stays away (see ``BulkRetries``).
        """
        reader = asyncio.create_task(self._read())
        retries = BulkRetries(self._transport.policy)
        try:
            while True:
                try:
                    async with aclosing(self._connect()) as connection:
                        async for answers in connection:
                            retries.answered()
                            for answer in answers:
                                yield answer
                    if self._resting:
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
        """Answers of one connection, batch by batch."""
        self._resting = False
        requests = self._requests(self._window.first)
        responses = self._transport.exchange(methods.EMBED_STREAM, requests)
        async with aclosing(responses):
            async for response in responses:
                async for answers in self._unsent():
                    yield answers
                batch = self._window.answered()
                await self._notify()
                if batch is None:
                    raise ServerError("EmbedStream: the server sent more answers than requests")
                yield embedded(batch, response)
        async for answers in self._unsent():
            yield answers
        if self._window.at(self._window.first) is not None and not self._resting:
            raise ServerError("EmbedStream: the server ended the stream before its last answer")

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
        # Whatever the caller's own iterable raises is raised again in the caller's task.
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
                self._resting = not self._ended
                return
            position += 1
            if batch.images:
                yield self._options.request(batch)
