"""From iterators that may block (files, encoders, the caller's own) to asynchronous ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from multigrain_client.batches import Batch, Splitter, split
from multigrain_client.images import encode_each, encode_item

if TYPE_CHECKING:
    from multigrain_client.images import Image, Images

T = TypeVar("T")


async def in_thread(items: Iterator[T]) -> AsyncIterator[T]:
    """The items, each fetched in a thread, so that the event loop goes on meanwhile."""
    end = object()
    while True:
        item = await asyncio.to_thread(next, items, end)
        if item is end:
            return
        yield item  # type: ignore[misc]  # not the sentinel


def batches_of(images: Images, max_images: int) -> AsyncIterator[Batch]:
    """Images read, encoded and gathered in a thread."""
    return in_thread(split(encode_each(images), max_images=max_images))


async def batches_of_stream(
    images: Iterable[Image] | AsyncIterable[Image], max_images: int
) -> AsyncIterator[Batch]:
    """As ``batches_of``, also from an asynchronous iterable."""
    if not isinstance(images, AsyncIterable):
        async for batch in batches_of(images, max_images):
            yield batch
        return
    splitter = Splitter(max_images)
    index = 0
    async for image in images:
        filled = splitter.push(await asyncio.to_thread(encode_item, index, image))
        index += 1
        if filled is not None:
            yield filled
    last = splitter.rest()
    if last is not None:
        yield last
