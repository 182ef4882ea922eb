"""Cuts a stream of images into requests that the server accepts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from multigrain_client.errors import ImageError
from multigrain_client.images import EncodedImage

MAX_IMAGES = 64
MAX_BYTES = 48 * 1024 * 1024


@dataclass(frozen=True)
class Batch:
    """Images of one request, and images among them that are not even sent, in input order."""

    images: tuple[EncodedImage, ...]
    errors: tuple[ImageError, ...] = ()


class Splitter:
    """Gathers consecutive images into batches of at most ``max_images`` images and
    ``max_bytes`` bytes.

    An image larger than ``max_bytes`` by itself can never be sent: it becomes an error.
    """

    def __init__(self, max_images: int = MAX_IMAGES, max_bytes: int = MAX_BYTES) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._images: list[EncodedImage] = []
        self._errors: list[ImageError] = []
        self._bytes = 0

    def push(self, item: EncodedImage | ImageError) -> Batch | None:
        """Takes the next image; returns the batch that it completes or no longer fits into."""
        if isinstance(item, EncodedImage) and len(item.data) > self._max_bytes:
            item = ImageError(
                item.index,
                item.name,
                "IMAGE_TOO_LARGE",
                f"has {len(item.data)} bytes; at most {self._max_bytes} can be sent in one call",
            )
        if isinstance(item, ImageError):
            self._errors.append(item)
            return self.rest() if len(self._errors) == self._max_images else None
        full = self._bytes + len(item.data) > self._max_bytes
        done = self.rest() if self._images and full else None
        self._images.append(item)
        self._bytes += len(item.data)
        if done is None and len(self._images) >= self._max_images:
            return self.rest()
        return done

    def rest(self) -> Batch | None:
        """What has gathered since the last batch; None if that is nothing."""
        if not self._images and not self._errors:
            return None
        batch = Batch(tuple(self._images), tuple(self._errors))
        self._images, self._errors, self._bytes = [], [], 0
        return batch


def split(
    images: Iterable[EncodedImage | ImageError],
    *,
    max_images: int = MAX_IMAGES,
    max_bytes: int = MAX_BYTES,
) -> Iterator[Batch]:
    """Every batch of the images, lazily."""
    splitter = Splitter(max_images, max_bytes)
    for item in images:
        batch = splitter.push(item)
        if batch is not None:
            yield batch
    batch = splitter.rest()
    if batch is not None:
        yield batch
