"""Requests and results of Embed and Classify: batches of images, options, NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from multigrain.v1.common_pb2 import ErrorKind
from multigrain.v1.embedding_pb2 import (
    DTYPE_FP16,
    DTYPE_INT8,
    ClassifyRequest,
    ClassifyResponse,
    EmbedRequest,
    EmbedResponse,
    ItemStatus,
    Vector,
)
from multigrain_client.errors import FieldViolation, ImageError, ImagesFailed, ServerError
from multigrain_client.images import EncodedImage
from multigrain_client.json_format import enum_name, fill, invalid

FloatArray = npt.NDArray[np.float32]
OnError = Literal["raise", "nan"]
ImageRequest = TypeVar("ImageRequest", EmbedRequest, ClassifyRequest)

MAX_IMAGES = 64
MAX_BYTES = 48 * 1024 * 1024


class EmbedKeywords(TypedDict, total=False):
    """Options of every call that embeds images.

    Attributes:
        model: "name", "name@version" or an alias; default: the server's default model. Name a
            version if a long input must not be split over a change of models.
        resolution: side of the input in pixels; default: the model's.
        normalize: L2-normalize the vectors; default True.
        whiten: apply the model's PCA whitening; default False.
        dtype: transfer dtype: "fp32" (default), "fp16" (half the bytes) or "int8" (a quarter).
    """

    model: str
    resolution: int
    normalize: bool
    whiten: bool
    dtype: str


@dataclass(frozen=True)
class EmbeddedImage:
    """Result for one image of ``embed_stream``; either ``vector`` or ``error`` is set.

    Attributes:
        index: position in the input, from 0.
        name: path of the image, or "image 3".
        vector: float32 (D,).
        error: why there is no vector.
        model: "name@version" of the model; empty for an image that was not sent.
    """

    index: int
    name: str
    vector: FloatArray | None
    error: ImageError | None = None
    model: str = ""


@dataclass(frozen=True)
class Classification:
    """One class of an image; ``probability`` is the softmax over all classes."""

    label: str
    class_id: int
    probability: float


@dataclass(frozen=True)
class ClassifiedImage:
    """Result for one image: classes, most probable first; or an error and no classes."""

    index: int
    name: str
    classes: tuple[Classification, ...]
    error: ImageError | None = None


@dataclass(frozen=True)
class Batch:
    """The images of one request, and images between them that cannot be sent; in input order."""

    images: tuple[EncodedImage, ...]
    errors: tuple[ImageError, ...] = ()


class Batcher:
    """Collects consecutive images into batches of at most ``max_images`` images and ``max_bytes``
    bytes.

    A single image larger than ``max_bytes`` cannot be sent: it becomes an error.
    """

    def __init__(self, max_images: int = MAX_IMAGES, max_bytes: int = MAX_BYTES) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._images: list[EncodedImage] = []
        self._errors: list[ImageError] = []
        self._bytes = 0

    def add(self, item: EncodedImage | ImageError) -> Batch | None:
        """Adds the next image; returns the batch that it completes or no longer fits into."""
        if isinstance(item, EncodedImage) and len(item.data) > self._max_bytes:
            item = ImageError(
                item.index,
                item.name,
                "IMAGE_TOO_LARGE",
                f"has {len(item.data)} bytes; at most {self._max_bytes} fit into one call",
            )
        if isinstance(item, ImageError):
            self._errors.append(item)
            return self.flush() if len(self._errors) == self._max_images else None
        full = self._bytes + len(item.data) > self._max_bytes
        done = self.flush() if self._images and full else None
        self._images.append(item)
        self._bytes += len(item.data)
        if done is None and len(self._images) >= self._max_images:
            return self.flush()
        return done

    def flush(self) -> Batch | None:
        """The images since the last batch; None if there are none."""
        if not self._images and not self._errors:
            return None
        batch = Batch(tuple(self._images), tuple(self._errors))
        self._images, self._errors, self._bytes = [], [], 0
        return batch


def batches_of(
    images: Iterable[EncodedImage | ImageError],
    *,
    max_images: int = MAX_IMAGES,
    max_bytes: int = MAX_BYTES,
) -> Iterator[Batch]:
    """The images in batches, lazily."""
    batcher = Batcher(max_images, max_bytes)
    for item in images:
        batch = batcher.add(item)
        if batch is not None:
            yield batch
    batch = batcher.flush()
    if batch is not None:
        yield batch


def embed_template(keywords: Mapping[str, Any]) -> EmbedRequest:
    """An EmbedRequest without images for ``EmbedKeywords``.

    Raises:
        InvalidRequest: for an unknown dtype or a value that its field cannot hold.
        TypeError: for a keyword that is not in ``EmbedKeywords``.
    """
    for name in keywords.keys() - EmbedKeywords.__annotations__.keys():
        raise TypeError(f"unexpected keyword argument {name!r}")
    template = EmbedRequest()
    fill(template, {"normalize": True, "dtype": "fp32", **keywords})
    return template


def classify_template(model: str, resolution: int, top_k: int) -> ClassifyRequest:
    """A ClassifyRequest without images.

    Raises:
        InvalidRequest: for a value that its field cannot hold.
    """
    template = ClassifyRequest()
    fill(template, {"model": model, "resolution": resolution, "top_k": top_k})
    return template


def with_images(template: ImageRequest, batch: Batch) -> ImageRequest:
    """A copy of the request that holds the images of a batch."""
    request = type(template)()
    request.CopyFrom(template)
    request.images.extend(image.data for image in batch.images)
    return request


def embedded(batch: Batch, response: EmbedResponse | None) -> list[EmbeddedImage]:
    """Results of one batch in input order; ``response`` is None if nothing was sent."""
    results = response.results if response is not None else ()
    model = response.model if response is not None else ""
    _check_count(batch, len(results))
    images = [EmbeddedImage(error.index, error.name, None, error) for error in batch.errors]
    for image, result in zip(batch.images, results, strict=True):
        error = _item_error(image.index, image.name, result.status)
        vector = None if error else decode_vector(result.embedding)
        images.append(EmbeddedImage(image.index, image.name, vector, error, model))
    return sorted(images, key=lambda image: image.index)


def classified(batch: Batch, response: ClassifyResponse | None) -> list[ClassifiedImage]:
    """Results of one batch in input order; ``response`` is None if nothing was sent."""
    results = response.results if response is not None else ()
    _check_count(batch, len(results))
    images = [ClassifiedImage(error.index, error.name, (), error) for error in batch.errors]
    for image, result in zip(batch.images, results, strict=True):
        error = _item_error(image.index, image.name, result.status)
        classes = tuple(
            Classification(score.label, score.class_id, score.probability)
            for score in result.classes
        )
        images.append(ClassifiedImage(image.index, image.name, () if error else classes, error))
    return sorted(images, key=lambda image: image.index)


def decode_vector(vector: Vector) -> FloatArray:
    """float32 (D,) of a vector in any transfer dtype.

    Raises:
        ServerError: if the number of bytes does not match the size.
    """
    if vector.dtype == DTYPE_FP16:
        values = np.frombuffer(vector.data, dtype="<f2").astype(np.float32)
    elif vector.dtype == DTYPE_INT8:
        values = np.frombuffer(vector.data, dtype=np.int8) * np.float32(vector.scale)
    else:
        values = np.frombuffer(vector.data, dtype="<f4").astype(np.float32)
    if len(values) != vector.size:
        raise ServerError(f"the server sent {len(values)} numbers for a vector of {vector.size}")
    return values.astype(np.float32, copy=False)


def matrix(images: Sequence[EmbeddedImage], on_error: OnError) -> FloatArray:
    """float32 (N, D), row i for image i.

    Args:
        images: results in input order.
        on_error: "raise", or "nan": the row of a failed image is NaN.

    Raises:
        ImagesFailed: with "raise" if any image failed; with "nan" if all of them did, because D is
            unknown then.
    """
    vectors = [image.vector for image in images if image.vector is not None]
    raise_failed(images, always=on_error == "raise" or (bool(images) and not vectors))
    if not vectors:
        return np.zeros((0, 0), np.float32)
    sizes = {len(vector) for vector in vectors}
    if len(sizes) > 1:
        # The default model or an alias changed during a long input.
        raise ServerError(
            f"vectors of different sizes ({', '.join(map(str, sorted(sizes)))}): the model changed "
            "during the call; name it as name@version"
        )
    rows = np.full((len(images), sizes.pop()), np.nan, np.float32)
    for row, image in zip(rows, images, strict=True):
        if image.vector is not None:
            row[:] = image.vector
    return rows


def raise_failed(images: Iterable[EmbeddedImage | ClassifiedImage], *, always: bool) -> None:
    """Raises:
    ImagesFailed: if ``always`` and any image failed.
    """
    images = list(images)
    errors = [image.error for image in images if image.error is not None]
    if errors and always:
        raise ImagesFailed(errors, len(images))


def check_on_error(on_error: str, allowed: tuple[str, ...]) -> None:
    """Raises:
    InvalidRequest: if the argument is not one of the allowed words.
    """
    if on_error not in allowed:
        raise invalid([FieldViolation("on_error", f"choose {' or '.join(allowed)}")])


def _item_error(index: int, name: str, status: ItemStatus) -> ImageError | None:
    if status.code == 0:
        return None
    kind = enum_name(ErrorKind.DESCRIPTOR, status.kind)
    return ImageError(index, name, kind, status.message or kind)


def _check_count(batch: Batch, results: int) -> None:
    if results != len(batch.images):
        raise ServerError(f"the server sent {results} results for {len(batch.images)} images")
