"""Embedding and classification of images."""

# ruff: noqa: ASYNC109 - a time-out here becomes the deadline that the server sees.

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, Unpack

from multigrain.v1.embedding_pb2 import ClassifyResponse, EmbedResponse
from multigrain_client.aio.bulk import AsyncBulkEmbedding
from multigrain_client.aio.feed import batches_of, batches_of_stream
from multigrain_client.aio.rpcs import AsyncRpcs
from multigrain_client.answers import (
    Classification,
    ClassifiedImage,
    ClassifyOptions,
    EmbeddedImage,
    EmbedKeywords,
    EmbedOptions,
    FloatArray,
    check_on_error,
    classified,
    embedded,
    matrix,
    raise_failed,
)
from multigrain_client.batches import MAX_IMAGES, Batch
from multigrain_client.folder import FolderEmbedding, FolderRun, OnProgress

if TYPE_CHECKING:
    import os

    from multigrain_client.images import Image, Images

Answer = TypeVar("Answer")


class AsyncImageCalls(AsyncRpcs):
    """Images are given as to ``Client``. Files are read and arrays encoded in threads."""

    # Calls of one embed() or classify() under way at the same time, and images of one call.
    _concurrency: int
    _batch_size: int

    async def embed(
        self,
        images: Images,
        *,
        on_error: Literal["raise", "nan"] = "raise",
        timeout: float | None = None,
        **keywords: Unpack[EmbedKeywords],
    ) -> FloatArray:
        """As ``Client.embed``."""
        check_on_error(on_error, ("raise", "nan"))
        options = EmbedOptions(**keywords)

        async def call(batch: Batch) -> list[EmbeddedImage]:
            response: EmbedResponse | None = None
            if batch.images:
                response = await self.Embed(options.request(batch), timeout=timeout)
            return embedded(batch, response)

        return matrix(await self._each_batch(images, call), on_error)

    async def classify(
        self,
        images: Images,
        top_k: int = 5,
        *,
        model: str = "",
        resolution: int = 0,
        on_error: Literal["raise", "empty"] = "raise",
        timeout: float | None = None,
    ) -> list[tuple[Classification, ...]]:
        """As ``Client.classify``."""
        check_on_error(on_error, ("raise", "empty"))
        options = ClassifyOptions(model, resolution, top_k)

        async def call(batch: Batch) -> list[ClassifiedImage]:
            response: ClassifyResponse | None = None
            if batch.images:
                response = await self.Classify(options.request(batch), timeout=timeout)
            return classified(batch, response)

        answers = await self._each_batch(images, call)
        raise_failed(answers, always=on_error == "raise")
        return [answer.classes for answer in answers]

    def embed_stream(
        self,
        images: Iterable[Image] | AsyncIterable[Image],
        *,
        batch_size: int = 16,
        window: int = 4,
        **keywords: Unpack[EmbedKeywords],
    ) -> AsyncGenerator[EmbeddedImage]:
        """As ``Client.embed_stream``; ``images`` may also be an asynchronous iterable."""
        options = EmbedOptions(**keywords)
        batches = batches_of_stream(images, min(batch_size, MAX_IMAGES))
        return AsyncBulkEmbedding(self._transport, options, batches, window).run()

    async def embed_folder(
        self,
        folder: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        on_progress: OnProgress | None = None,
        **keywords: Unpack[EmbedKeywords],
    ) -> FolderEmbedding:
        """As ``Client.embed_folder``."""
        run = await asyncio.to_thread(FolderRun, Path(folder), Path(out), on_progress)
        answers = self.embed_stream(run.paths, **keywords)
        with run:
            async with aclosing(answers):
                async for answer in answers:
                    run.add(answer)
            return await asyncio.to_thread(run.finish)

    async def _each_batch(
        self, images: Images, call: Callable[[Batch], Awaitable[list[Answer]]]
    ) -> list[Answer]:
        """Answers of all images in order, with a bounded number of calls under way."""
        answers: list[Answer] = []
        waiting: deque[asyncio.Future[list[Answer]]] = deque()
        try:
            async for batch in batches_of(images, self._batch_size):
                if len(waiting) >= self._concurrency:
                    answers += await waiting.popleft()
                waiting.append(asyncio.ensure_future(call(batch)))
            while waiting:
                answers += await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return answers
