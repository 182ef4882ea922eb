"""Images into the calls Embed and Classify, vectors and classes out of them.

In the order of a call: an image of any supported type is encoded as the bytes of an image file,
images are collected into batches, a batch becomes a request, and a response becomes NumPy arrays.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Literal,
    TypeAlias,
    TypedDict,
    TypeGuard,
    TypeVar,
)

import numpy as np
import numpy.typing as npt

from multigrain.files import open_regular
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
from multigrain_client.errors import (
    FieldViolation,
    ImageError,
    ImagesFailed,
    InvalidRequest,
    MissingPackage,
    ServerError,
)
from multigrain_client.json_format import enum_name, fill, invalid

if TYPE_CHECKING:
    from PIL import Image as PilImage
    from typing_extensions import TypeIs

    _InMemory: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[Any] | PilImage.Image
    Image: TypeAlias = str | os.PathLike[str] | BinaryIO | _InMemory
    Images: TypeAlias = Image | Iterable[Image]

FloatArray = npt.NDArray[np.float32]
OnError = Literal["raise", "nan"]
ImageRequest = TypeVar("ImageRequest", EmbedRequest, ClassifyRequest)

MAX_IMAGES = 64
MAX_BYTES = 48 * 1024 * 1024

NEEDS_PILLOW = "needs Pillow to be encoded: pip install 'multigrain[images]'"
_SUPPORTED = "a path, bytes, an open binary file, a PIL image or a NumPy array"
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class EncodedImage:
    """Bytes of an image file, with a name for messages ("photos/cat.jpg", "image 3")."""

    index: int
    name: str
    data: bytes


def each(images: Images) -> Iterator[Image]:
    """Iterates over a single image, an (N, H, W, C) array or an iterable of images.

    Raises:
        InvalidRequest: for anything else.
    """
    if isinstance(images, np.ndarray):
        yield from [images] if images.ndim < 4 else list(images)
    elif is_single(images):
        yield images
    elif isinstance(images, Iterable):
        yield from images
    else:
        raise InvalidRequest(f"{type(images).__name__} is not an image type; give {_SUPPORTED}")


def encode_each(images: Images) -> Iterator[EncodedImage | ImageError]:
    """Encodes lazily: never more than one image is in memory."""
    for index, image in enumerate(each(images)):
        yield encode_item(index, image)


def encode_item(index: int, image: Image) -> EncodedImage | ImageError:
    """One encoded image, or the error of a file that cannot be read.

    Raises:
        InvalidRequest: for an object that is not an image.
        MissingPackage: for an array, without Pillow.
    """
    name = _name(index, image)
    try:
        return EncodedImage(index, name, encode(image, name))
    except OSError as error:
        reason = error.strerror or str(error)
        kind = "IMAGE_TOO_LARGE" if error.errno == errno.EFBIG else "IMAGE_UNREADABLE"
        return ImageError(index, name, kind, f"cannot be read: {reason}")


def encode(image: Image, name: str = "image") -> bytes:
    """Bytes of an image file.

    Paths, bytes and files are sent unchanged; uint8 arrays (height, width[, 1, 3 or 4]) and PIL
    images are encoded as PNG, which is lossless.

    Raises:
        OSError: if a file cannot be read, is not a regular file, or is larger than a call.
        InvalidRequest: for an object that is not an image, or an image that PNG cannot represent.
        MissingPackage: for an array, without Pillow.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        with open_regular(image) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise OSError(
                    errno.EFBIG, f"it has {size} bytes; at most {MAX_BYTES} fit into one call"
                )
            return file.read(MAX_BYTES + 1)
    if isinstance(image, np.ndarray):
        return _encode_array(image, name)
    if _is_pil(image):
        return _encode_pil(image, name)
    read = getattr(image, "read", None)
    if callable(read):
        data = read()
        if not isinstance(data, bytes):
            raise InvalidRequest(f"{name}: the file is open in text mode; open it with mode 'rb'")
        return data
    raise InvalidRequest(f"{name}: {type(image).__name__} is not an image type; give {_SUPPORTED}")


def _encode_array(array: npt.NDArray[Any], name: str) -> bytes:
    if array.dtype != np.uint8:
        raise InvalidRequest(f"{name}: an array must be uint8 (0..255), not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise InvalidRequest(
            f"{name}: an array must be (height, width), or (height, width, channels) with 1, 3 "
            f"or 4 channels, not {array.shape}"
        )
    try:
        from PIL import Image as PilImage
    except ImportError as error:
        raise MissingPackage(f"{name}: an array {NEEDS_PILLOW}") from error
    return _encode_pil(PilImage.fromarray(np.ascontiguousarray(array)), name)


def _encode_pil(image: PilImage.Image, name: str) -> bytes:
    try:
        image = _for_png(_upright(image))
    except ValueError as error:
        raise InvalidRequest(f"{name}: an image of mode {image.mode}: {error}") from error
    buffer = io.BytesIO()
    # Fast compression: encoding time matters more than a few bytes on the network.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _upright(image: PilImage.Image) -> PilImage.Image:
    """Rotated by its EXIF orientation, as the server does; the PNG does not carry the tag."""
    from PIL import ImageOps  # a PIL image exists, so Pillow is installed

    try:
        turned = image.getexif().get(_ORIENTATION_TAG, 1) in range(2, 9)
    except Exception:  # damaged metadata does not matter for the pixels
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _for_png(image: PilImage.Image) -> PilImage.Image:
    """The same image in a mode that PNG supports (unlike CMYK or YCbCr).

    Transparency and 16 bits are kept: the server handles them, while Pillow's own conversion of
    gray with more than 8 bits clips at 255.

    Raises:
        ValueError: if there is no such mode.
    """
    if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        return image
    if image.mode == "La":
        return image.convert("LA")
    if image.mode in ("PA", "RGBa"):
        return image.convert("RGBA")
    if image.mode.startswith("I") or image.mode == "F":
        return _gray_16(image)
    return image.convert("RGB")


def _gray_16(image: PilImage.Image) -> PilImage.Image:
    from PIL import Image as PilImage

    values = np.asarray(image)
    if image.mode == "F":
        raise ValueError("floating-point values have no defined range; convert it to L")
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError("values must be 0..65535")
    return PilImage.fromarray(values.astype(np.uint16))


def is_single(images: Images) -> TypeIs[Image]:
    """Whether this is a single image."""
    return (
        isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview))
        or _is_pil(images)
        or callable(getattr(images, "read", None))
    )


def _is_pil(image: Any) -> TypeGuard[PilImage.Image]:
    """Whether this is a PIL image; does not import Pillow."""
    return any(cls.__module__.startswith("PIL.") for cls in type(image).__mro__)


def _name(index: int, image: Any) -> str:
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    # Open files, and PIL images opened from a file, know their path.
    for attribute in ("filename", "name"):
        value = getattr(image, attribute, None)
        if isinstance(value, str) and value:
            return value
    return f"image {index}"


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

    def __repr__(self) -> str:
        """On one line, without the numbers of the vector."""
        result = (
            f"error={self.error!r}"
            if self.vector is None
            else (f"vector={self.vector.dtype}{list(self.vector.shape)}")
        )
        return f"EmbeddedImage({self.index}, {self.name!r}, {result}, model={self.model!r})"


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
