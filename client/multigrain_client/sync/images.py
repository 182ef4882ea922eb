"""Embedding and classification of images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, Unpack

from multigrain.v1.embedding_pb2 import ClassifyResponse, EmbedResponse
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
from multigrain_client.batches import MAX_IMAGES, Batch, split
from multigrain_client.folder import FolderEmbedding, FolderRun, OnProgress
from multigrain_client.images import encode_each
from multigrain_client.sync.bulk import BulkEmbedding
from multigrain_client.sync.rpcs import Rpcs

if TYPE_CHECKING:
    import os

    from multigrain_client.images import Image, Images

Answer = TypeVar("Answer")


class ImageCalls(Rpcs):
    """An image is a path, bytes of an image file, an open binary file, a PIL image or a uint8
    array (height, width[, channels]); ``images`` is one of these, several, or an
    (N, height, width, channels) array. Arrays and PIL images need Pillow.
    """

    # Calls of one embed() or classify() under way at the same time, and images of one call.
    _concurrency: int
    _batch_size: int

    def embed(
        self,
        images: Images,
        *,
        on_error: Literal["raise", "nan"] = "raise",
        timeout: float | None = None,
        **keywords: Unpack[EmbedKeywords],
    ) -> FloatArray:
        """Embeds images; any number, split into calls the server accepts.

        Args:
            on_error: "raise", or "nan": the row of a bad image is not-a-number throughout.
            timeout: seconds for each call.
            keywords: see ``EmbedKeywords``.

        Returns:
            float32 (N, D), row i for image i; (0, 0) for no images.

        Raises:
            ImagesFailed: naming every image that has no vector.
        """
        check_on_error(on_error, ("raise", "nan"))
        options = EmbedOptions(**keywords)

        def call(batch: Batch) -> list[EmbeddedImage]:
            response: EmbedResponse | None = None
            if batch.images:
                response = self.Embed(options.request(batch), timeout=timeout)
            return embedded(batch, response)

        return matrix(self._each_batch(images, call), on_error)

    def classify(
        self,
        images: Images,
        top_k: int = 5,
        *,
        model: str = "",
        resolution: int = 0,
        on_error: Literal["raise", "empty"] = "raise",
        timeout: float | None = None,
    ) -> list[tuple[Classification, ...]]:
        """Classifies images.

        Args:
            top_k: classes for each image, most probable first.
            on_error: "raise", or "empty": a bad image has no classes.
            model, resolution: as in ``EmbedKeywords``.
            timeout: seconds for each call.

        Returns:
            for each image in input order, its classes.

        Raises:
            ImagesFailed: naming every image that has no answer.
        """
        check_on_error(on_error, ("raise", "empty"))
        options = ClassifyOptions(model, resolution, top_k)

        def call(batch: Batch) -> list[ClassifiedImage]:
            response: ClassifyResponse | None = None
            if batch.images:
                response = self.Classify(options.request(batch), timeout=timeout)
            return classified(batch, response)

        answers = self._each_batch(images, call)
        raise_failed(answers, always=on_error == "raise")
        return [answer.classes for answer in answers]

    def embed_stream(
        self,
        images: Iterable[Image],
        *,
        batch_size: int = 16,
        window: int = 4,
        **keywords: Unpack[EmbedKeywords],
    ) -> Generator[EmbeddedImage]:
        """Embeds any number of images over one stream and yields answers in input order.

        Images are read only as fast as answers come. A bad image yields an answer with
        ``error``. A broken stream is opened again and what had no answer is sent once more.

        Args:
            batch_size: images of one message; 1 for the quickest single answers.
            window: messages under way at the same time.
            keywords: see ``EmbedKeywords``.
        """
        options = EmbedOptions(**keywords)
        batches = split(encode_each(images), max_images=min(batch_size, MAX_IMAGES))
        return BulkEmbedding(self._transport, options, batches, window).run()

    def embed_folder(
        self,
        folder: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        on_progress: OnProgress | None = None,
        **keywords: Unpack[EmbedKeywords],
    ) -> FolderEmbedding:
        """Embeds every image file under a folder into a file of vectors.

        The file appears when it is whole. A bad image has a row without a vector and is named
        in the result.

        Args:
            out: "vectors.parquet" (columns path, embedding, error; needs pyarrow) or
                "vectors.npy" (float32 (N, D); its rows are listed in "vectors.csv").
            on_progress: called with (images answered, images in all) after every image.
            keywords: see ``EmbedKeywords``.

        Raises:
            InvalidRequest: for a folder without images, or an ``out`` that will not do.
            ImagesFailed: if not one image has a vector.
            OSError: if the file cannot be written.
        """
        run = FolderRun(Path(folder), Path(out), on_progress)
        answers = self.embed_stream(run.paths, **keywords)
        with run, closing(answers):
            for answer in answers:
                run.add(answer)
            return run.finish()

    def _each_batch(self, images: Images, call: Callable[[Batch], list[Answer]]) -> list[Answer]:
        """Answers of all images in order, with a bounded number of calls under way."""
        batches = split(encode_each(images), max_images=self._batch_size)
        head = list(islice(batches, 2))
        if len(head) < 2:
            # The everyday case, one call: no threads.
            return call(head[0]) if head else []
        answers: list[Answer] = []
        waiting: deque[Future[list[Answer]]] = deque()
        with ThreadPoolExecutor(self._concurrency, "multigrain-client") as pool:
            try:
                for batch in head:
                    waiting.append(pool.submit(copy_context().run, call, batch))
                for batch in batches:
                    if len(waiting) >= self._concurrency:
                        answers += waiting.popleft().result()
                    waiting.append(pool.submit(copy_context().run, call, batch))
                while waiting:
                    answers += waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
        return answers
