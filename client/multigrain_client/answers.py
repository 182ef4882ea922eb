"""Answers of Embed and Classify as NumPy arrays and dataclasses, one for each input image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
import numpy.typing as npt

from multigrain.v1.common_pb2 import ErrorKind
from multigrain.v1.embedding_pb2 import (
    DTYPE_FP16,
    DTYPE_INT8,
    ClassifyRequest,
    ClassifyResponse,
    Dtype,
    EmbedRequest,
    EmbedResponse,
    ItemStatus,
    Vector,
)
from multigrain_client.batches import Batch
from multigrain_client.errors import FieldViolation, ImageError, ImagesFailed, ServerError
from multigrain_client.messages import enum_name, enum_names, fill, invalid

FloatArray = npt.NDArray[np.float32]
OnError = Literal["raise", "nan"]


@dataclass(frozen=True)
class EmbeddedImage:
    """Answer for one image of ``embed_stream``: exactly one of vector and error is set.

    Attributes:
        index: position in the input, from 0.
        name: path of the image, or "image 3".
        vector: float32 (D,).
        model: "name@version" that answered; empty for an image that was not even sent.
    """

    index: int
    name: str
    vector: FloatArray | None
    error: ImageError | None = None
    model: str = ""


@dataclass(frozen=True)
class Classification:
    """One class of one image; ``probability`` is the softmax over all classes."""

    label: str
    class_id: int
    probability: float


@dataclass(frozen=True)
class ClassifiedImage:
    """Answer for one image: classes, most probable first, or an error and no class."""

    index: int
    name: str
    classes: tuple[Classification, ...]
    error: ImageError | None = None


class EmbedKeywords(TypedDict, total=False):
    """What every call that embeds can be told.

    Attributes:
        model: "name", "name@version" or an alias; empty (the default) = the default model. Name
            a version when a long input must not be split over a switch of models.
        resolution: side of the input in pixels; 0 (the default) = the model's.
        normalize: L2-normalise the vectors; default True.
        whiten: whiten them with the bundle's PCA; default False.
        dtype: how numbers travel: "fp32" (the default), "fp16" (half the bytes) or "int8" (a
            quarter).
    """

    model: str
    resolution: int
    normalize: bool
    whiten: bool
    dtype: str


@dataclass(frozen=True)
class EmbedOptions:
    """What every request of one embed call has in common: ``EmbedKeywords`` with its defaults.

    Raises:
        InvalidRequest: for an unknown dtype, or a value that its field cannot hold.
    """

    model: str = ""
    resolution: int = 0
    normalize: bool = True
    whiten: bool = False
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        dtypes = enum_names(Dtype.DESCRIPTOR)
        if self.dtype.upper() not in dtypes:
            known = ", ".join(name.lower() for name in dtypes)
            raise invalid([FieldViolation("dtype", f"no {self.dtype!r}; there are {known}")])
        # Now, not in the thread that sends: gRPC would only say that something failed there.
        fill(
            EmbedRequest(),
            {
                "model": self.model,
                "resolution": self.resolution,
                "normalize": self.normalize,
                "whiten": self.whiten,
            },
        )

    def request(self, batch: Batch, request_id: str = "") -> EmbedRequest:
        number = enum_names(Dtype.DESCRIPTOR)[self.dtype.upper()]
        return EmbedRequest(
            model=self.model,
            images=[image.data for image in batch.images],
            resolution=self.resolution,
            normalize=self.normalize,
            whiten=self.whiten,
            dtype=Dtype.ValueType(number),
            request_id=request_id,
        )


@dataclass(frozen=True)
class ClassifyOptions:
    """What every request of one classify call has in common.

    Raises:
        InvalidRequest: for a value that its field cannot hold.
    """

    model: str = ""
    resolution: int = 0
    top_k: int = 5

    def __post_init__(self) -> None:
        fill(
            ClassifyRequest(),
            {"model": self.model, "resolution": self.resolution, "top_k": self.top_k},
        )

    def request(self, batch: Batch, request_id: str = "") -> ClassifyRequest:
        return ClassifyRequest(
            model=self.model,
            images=[image.data for image in batch.images],
            resolution=self.resolution,
            top_k=self.top_k,
            request_id=request_id,
        )


def embedded(batch: Batch, response: EmbedResponse | None) -> list[EmbeddedImage]:
    """Answers of one batch in input order; ``response`` is None if nothing was sent."""
    results = response.results if response is not None else ()
    model = response.model if response is not None else ""
    _check_count(batch, len(results))
    answers = [EmbeddedImage(error.index, error.name, None, error) for error in batch.errors]
    for image, result in zip(batch.images, results, strict=True):
        error = _item_error(image.index, image.name, result.status)
        vector = None if error else decode_vector(result.embedding)
        answers.append(EmbeddedImage(image.index, image.name, vector, error, model))
    return sorted(answers, key=lambda answer: answer.index)


def classified(batch: Batch, response: ClassifyResponse | None) -> list[ClassifiedImage]:
    """Answers of one batch in input order; ``response`` is None if nothing was sent."""
    results = response.results if response is not None else ()
    _check_count(batch, len(results))
    answers = [ClassifiedImage(error.index, error.name, (), error) for error in batch.errors]
    for image, result in zip(batch.images, results, strict=True):
        error = _item_error(image.index, image.name, result.status)
        classes = tuple(
            Classification(score.label, score.class_id, score.probability)
            for score in result.classes
        )
        answers.append(ClassifiedImage(image.index, image.name, () if error else classes, error))
    return sorted(answers, key=lambda answer: answer.index)


def decode_vector(vector: Vector) -> FloatArray:
    """float32 (D,) of a vector in any of the wire's types.

    Raises:
        ServerError: if the bytes are not as many as the size says.
    """
    if vector.dtype == DTYPE_FP16:
        values = np.frombuffer(vector.data, dtype="<f2").astype(np.float32)
    elif vector.dtype == DTYPE_INT8:
        values = np.frombuffer(vector.data, dtype=np.int8) * np.float32(vector.scale)
    else:
        values = np.frombuffer(vector.data, dtype="<f4").astype(np.float32)
    if len(values) != vector.size:
        raise ServerError(f"the server sent {len(values)} numbers of a vector of {vector.size}")
    return values.astype(np.float32, copy=False)


def matrix(answers: Sequence[EmbeddedImage], on_error: OnError) -> FloatArray:
    """float32 (N, D), row i for image i.

    Args:
        on_error: "raise", or "nan": the row of a bad image is not-a-number throughout.

    Raises:
        ImagesFailed: naming every bad image, with "raise"; with "nan" only if there is no
            vector at all, so that D is unknown.
    """
    vectors = [answer.vector for answer in answers if answer.vector is not None]
    raise_failed(answers, always=on_error == "raise" or (bool(answers) and not vectors))
    if not vectors:
        return np.zeros((0, 0), np.float32)
    sizes = {len(vector) for vector in vectors}
    if len(sizes) > 1:
        # The default model or an alias was switched while a long input was under way.
        raise ServerError(
            f"vectors of different sizes ({', '.join(map(str, sorted(sizes)))}): the model was "
            "switched meanwhile; name one as name@version"
        )
    rows = np.full((len(answers), sizes.pop()), np.nan, np.float32)
    for row, answer in zip(rows, answers, strict=True):
        if answer.vector is not None:
            row[:] = answer.vector
    return rows


def raise_failed(answers: Iterable[EmbeddedImage | ClassifiedImage], *, always: bool) -> None:
    """Raises:
    ImagesFailed: if ``always`` and any answer is an error.
    """
    answers = list(answers)
    errors = [answer.error for answer in answers if answer.error is not None]
    if errors and always:
        raise ImagesFailed(errors, len(answers))


def check_on_error(on_error: str, allowed: tuple[str, ...]) -> None:
    """Raises:
    InvalidRequest: if the argument is none of the allowed words.
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
