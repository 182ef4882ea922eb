"""Embedding and classification of images."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Literal, Unpack

from multigrain.v1.embedding_pb2 import ClassifyResponse, EmbedResponse
from multigrain_client.aio.bulk import AsyncBulkEmbedding, map_batches, stream_batches
from multigrain_client.aio.rpcs import AsyncRpcs
from multigrain_client.folder_embedding import FolderEmbedding, FolderRun, OnProgress
from multigrain_client.images import (
    MAX_IMAGES,
    Batch,
    Classification,
    ClassifiedImage,
    EmbeddedImage,
    EmbedKeywords,
    FloatArray,
    check_on_error,
    classified,
    classify_template,
    embed_template,
    embedded,
    matrix,
    raise_failed,
    with_images,
)

if TYPE_CHECKING:
    from multigrain_client.aio.bulk import ImageStream
    from multigrain_client.images import Images


class AsyncImageCalls(AsyncRpcs):
    """An image is a path, the bytes of an image file, an open binary file, a PIL image or a uint8
    array (height, width[, channels]); ``images`` is one of these, several, or an
    (N, height, width, channels) array. Arrays and PIL images need Pillow.
    """

    # Parallel calls of one embed() or classify(), and images per call.
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
        """Embeds any number of images, split into calls that the server accepts.

        Args:
            images: the images.
            on_error: "raise", or "nan": the row of a failed image is NaN.
            timeout: seconds for each call.
            keywords: see ``EmbedKeywords``.

        Returns:
            float32 (N, D), row i for image i; (0, 0) for no images.

        Raises:
            ImagesFailed: naming every image that has no vector.
        """
        check_on_error(on_error, ("raise", "nan"))
        return matrix(await self.embed_each(images, timeout=timeout, **keywords), on_error)

    async def embed_each(
        self, images: Images, *, timeout: float | None = None, **keywords: Unpack[EmbedKeywords]
    ) -> list[EmbeddedImage]:
        """As ``embed``, but returns one result per image, in input order: its vector, or the error
        of this image."""
        template = embed_template(keywords)

        async def call(batch: Batch) -> list[EmbeddedImage]:
            response: EmbedResponse | None = None
            if batch.images:
                response = await self.Embed(with_images(template, batch), timeout=timeout)
            return embedded(batch, response)

        return await map_batches(call, images, self._batch_size, self._concurrency)

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
        """Classifies any number of images, split into calls that the server accepts.

        Args:
            images: the images.
            top_k: classes per image, most probable first.
            model, resolution: as in ``EmbedKeywords``.
            on_error: "raise", or "empty": a failed image has no classes.
            timeout: seconds for each call.

        Returns:
            the classes of each image, in input order.

        Raises:
            ImagesFailed: naming every image that has no result.
        """
        check_on_error(on_error, ("raise", "empty"))
        results = await self.classify_each(
            images, top_k, model=model, resolution=resolution, timeout=timeout
        )
        raise_failed(results, always=on_error == "raise")
        return [result.classes for result in results]

    async def classify_each(
        self,
        images: Images,
        top_k: int = 5,
        *,
        model: str = "",
        resolution: int = 0,
        timeout: float | None = None,
    ) -> list[ClassifiedImage]:
        """As ``classify``, but returns one result per image, in input order: its classes, or the
        error of this image."""
        template = classify_template(model, resolution, top_k)

        async def call(batch: Batch) -> list[ClassifiedImage]:
            response: ClassifyResponse | None = None
            if batch.images:
                response = await self.Classify(with_images(template, batch), timeout=timeout)
            return classified(batch, response)

        return await map_batches(call, images, self._batch_size, self._concurrency)

    def embed_stream(
        self,
        images: ImageStream,
        *,
        batch_size: int = 16,
        window: int = 4,
        **keywords: Unpack[EmbedKeywords],
    ) -> AsyncGenerator[EmbeddedImage]:
        """Embeds any number of images over one stream and yields results in input order.

        Images are read only as fast as results arrive. A failed image yields a result with
        ``error``. A broken stream is reconnected and unanswered images are sent again.

        Args:
            images: the images.
            batch_size: images per message; 1 for the lowest latency of a single image.
            window: maximum number of messages in flight.
            keywords: see ``EmbedKeywords``.
        """
        template = embed_template(keywords)
        batches = stream_batches(images, min(batch_size, MAX_IMAGES))
        return AsyncBulkEmbedding(self._transport, template, batches, window).run()

    async def embed_folder(
        self,
        folder: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        on_progress: OnProgress | None = None,
        **keywords: Unpack[EmbedKeywords],
    ) -> FolderEmbedding:
        """Embeds every image file below a folder into a file of vectors.

        The file appears when it is complete. A failed image has a row without a vector and is
        named in the result. If the call fails or is interrupted, the rows so far are kept in a
        file "vectors.part.npy" or "vectors.part.parquet", which a note of the exception names.

        A path that is not UTF-8 is written with escapes; ``multigrain.text.original_path`` is the
        inverse.

        Args:
            folder: the folder.
            out: "vectors.parquet" (columns path, embedding, error; needs pyarrow) or
                "vectors.npy" (float32 (N, D); "vectors.csv" lists its rows).
            on_progress: called with (images done, images in total) after every image.
            keywords: see ``EmbedKeywords``.

        Raises:
            InvalidRequest: for a folder without images, or an invalid ``out``.
            ImagesFailed: if no image has a vector.
            OSError: if the disk is full or fails.
        """
        run = await asyncio.to_thread(FolderRun, folder, out, on_progress)
        with run:
            async with aclosing(self.embed_stream(run.paths, **keywords)) as results:
                async for result in results:
                    run.add(result)
            return await asyncio.to_thread(run.finish)
