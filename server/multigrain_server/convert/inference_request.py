"""Open Inference Protocol: names, tensors, parameters, and requests of ModelInfer."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from multigrain.engine.protocol import EmbeddingOptions
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.specs.violations import nearest
from multigrain.v1.inference import service_pb2
from multigrain_server.access.client import Origin
from multigrain_server.engines.images import ImageRequest

#: Input: encoded files, BYTES [N, 1] or [N].
IMAGES = "images"
#: Input: preprocessed images, FP32 [N, 3, side, side].
PIXELS = "pixels"
#: Output: FP32 [N, size].
EMBEDDING = "embedding"
#: Output: FP32 [N, classes]; with the parameter "classification", BYTES [N, k].
SCORES = "scores"

INPUTS = {IMAGES: "BYTES", PIXELS: "FP32"}
OUTPUTS = (EMBEDDING, SCORES)

CLASSIFICATION = "classification"
PLATFORM = "multigrain"


_LENGTH = struct.Struct("<I")
FLOAT_BYTES = 4


def split_bytes(raw: bytes, elements: int, field: str) -> list[bytes]:
    """Splits a raw BYTES tensor into its elements; a little-endian uint32 length precedes each.

    Args:
        raw: the tensor.
        elements: how many its shape says there are; no more are read.
        field: named in errors.

    Raises:
        MultigrainError: INVALID_FIELD if it is not exactly so many elements.
    """
    found = []
    at = 0
    for number in range(elements):
        if len(raw) - at < _LENGTH.size:
            raise MultigrainError.field(
                field, f"ends after {number} elements, the shape says {elements}"
            )
        (size,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if size > len(raw) - at:
            raise MultigrainError.field(
                field,
                f"element {number} says it has {size} bytes, and {len(raw) - at} are left: each "
                "element must stand after its length as a little-endian uint32",
            )
        found.append(raw[at : at + size])
        at += size
    if at != len(raw):
        raise MultigrainError.field(
            field, f"has {len(raw) - at} bytes after the {elements} elements of the shape"
        )
    return found


def join_bytes(elements: Iterable[bytes]) -> bytes:
    """Joins elements to a raw BYTES tensor."""
    return b"".join(part for item in elements for part in (_LENGTH.pack(len(item)), item))


def split_floats(raw: bytes, images: int, size: int, field: str) -> list[bytes]:
    """Splits a raw FP32 tensor into its images, of ``size`` numbers each.

    Raises:
        MultigrainError: INVALID_FIELD for another number of bytes.
    """
    step = FLOAT_BYTES * size
    if len(raw) != images * step:
        raise MultigrainError.field(
            field, f"has {len(raw)} bytes, a FP32 tensor of this shape has {images * step}"
        )
    return [raw[at : at + step] for at in range(0, len(raw), step)]


def pack_floats(numbers: Iterable[float]) -> bytes:
    """Packs numbers to a raw FP32 tensor."""
    packed = array("f", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


Parameters = Mapping[str, service_pb2.InferParameter]

_KNOWN = ("normalize", "priority", "resolution", "timeout", "whiten")
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
# Parameters of Triton itself, about the form of responses: they have no effect here.
_RESERVED = "triton_"
_MAX_PIXELS = 1 << 20


@dataclass(frozen=True)
class RequestParameters:
    """``timeout_ns`` 0 = none; ``resolution`` 0 = the model's."""

    resolution: int = 0
    normalize: bool = True
    whiten: bool = False
    timeout_ns: int = 0


def request_parameters(parameters: Parameters) -> RequestParameters:
    """Raises MultigrainError INVALID_FIELD for an unknown name or a value of the wrong type."""
    for name in parameters:
        if name not in _KNOWN and not name.startswith(_RESERVED):
            raise _unknown(name, parameters)
    # Accepted because clients send it, and ignored: all requests wait in one queue.
    _whole(parameters, "priority", (1 << 64) - 1)
    return RequestParameters(
        resolution=_whole(parameters, "resolution", _MAX_PIXELS),
        normalize=_flag(parameters, "normalize", True),
        whiten=_flag(parameters, "whiten", False),
        timeout_ns=1000 * _whole(parameters, "timeout", (1 << 63) - 1),
    )


def refuse_all(parameters: Parameters, field: str, known: tuple[str, ...] = ()) -> None:
    """Refuses parameters of a tensor other than ``known``.

    Raises:
        MultigrainError: UNSUPPORTED for shared memory, INVALID_FIELD for others.
    """
    for name in parameters:
        if name.startswith("shared_memory"):
            raise MultigrainError(
                ErrorKind.UNSUPPORTED,
                f"{field}.parameters.{name}: shared memory is not offered, send and receive "
                "tensors in the messages",
            )
        if name not in known:
            what = f"use {', '.join(known)}" if known else "this tensor has no parameters"
            raise MultigrainError.field(f"{field}.parameters", f"{name[:80]!r} is unknown: {what}")


def whole(parameter: service_pb2.InferParameter, field: str, most: int) -> int:
    """A whole number from 0, sent as int64 or as uint64. Raises INVALID_FIELD."""
    kind = parameter.WhichOneof("parameter_choice")
    value = parameter.uint64_param if kind == "uint64_param" else parameter.int64_param
    if kind not in ("int64_param", "uint64_param") or not 0 <= value <= most:
        raise MultigrainError.field(field, f"must be a whole number from 0 to {most}")
    return value


def _whole(parameters: Parameters, name: str, most: int) -> int:
    if name not in parameters:
        return 0
    return whole(parameters[name], f"parameters.{name}", most)


def _flag(parameters: Parameters, name: str, default: bool) -> bool:
    if name not in parameters:
        return default
    if parameters[name].WhichOneof("parameter_choice") != "bool_param":
        raise MultigrainError.field(f"parameters.{name}", "must be true or false (bool_param)")
    return parameters[name].bool_param


def _unknown(name: str, parameters: Parameters) -> MultigrainError:
    if name in _SEQUENCE:
        return MultigrainError.field(
            f"parameters.{name}", "sequences are not supported: leave it out"
        )
    guess = nearest(name[:80], _KNOWN)
    hint = f"did you mean {guess}?" if guess else f"known are {', '.join(_KNOWN)}"
    return MultigrainError.field("parameters", f"{name[:80]!r} is unknown: {hint}")


_Input = service_pb2.ModelInferRequest.InferInputTensor
_Contents = service_pb2.InferTensorContents
# Far above any bundle's classes.
_MAX_TOP = 1 << 31


@dataclass(frozen=True)
class InferRequest:
    """A request, and what its response must contain.

    Attributes:
        request: its images and options.
        id: the caller's.
        outputs: names in the requested order; none = all that the model has.
        top: number of classes to return instead of the scores; 0 = the scores.
    """

    request: ImageRequest
    id: str
    outputs: tuple[str, ...]
    top: int


@dataclass(frozen=True)
class _Images:
    """Files, or preprocessed images of one ``resolution``."""

    items: list[bytes]
    resolution: int = 0


def infer_request(
    message: service_pb2.ModelInferRequest,
    model: str,
    *,
    max_images: int,
    sender: Origin,
    received_ns: int,
    deadline_ns: int,
) -> InferRequest:
    """Checks everything that can be checked without the model.

    Args:
        message: as it came.
        model: its ``model_name`` and ``model_version`` as "name@version".
        max_images: of a request.
        sender: where it comes from.
        received_ns: on CLOCK_MONOTONIC.
        deadline_ns: on the same clock; 0 = none.

    Raises:
        MultigrainError: INVALID_FIELD, UNSUPPORTED (shared memory).
    """
    wanted = request_parameters(message.parameters)
    outputs, top = _outputs(message)
    images = _images(message, max_images)
    if wanted.resolution and images.resolution not in (0, wanted.resolution):
        raise MultigrainError.field(
            "parameters.resolution",
            f"is {wanted.resolution}, but the preprocessed images have {images.resolution} pixels",
        )
    if wanted.timeout_ns:
        end = received_ns + wanted.timeout_ns
        deadline_ns = min(end, deadline_ns) if deadline_ns else end
    embeds = EMBEDDING in outputs or not outputs
    options = EmbeddingOptions(normalize=wanted.normalize, whiten=wanted.whiten)
    request = ImageRequest(
        model=model,
        images=images.items,
        tensors=images.resolution > 0,
        resolution=images.resolution or wanted.resolution,
        vector=options if embeds else None,
        top_k=top or None,
        scores=not top and (SCORES in outputs or not outputs),
        client=sender.client,
        connection=sender.connection,
        received_ns=received_ns,
        deadline_ns=deadline_ns,
    )
    return InferRequest(request, message.id, outputs, top)


def _outputs(message: service_pb2.ModelInferRequest) -> tuple[tuple[str, ...], int]:
    """Names of the requested outputs, and the number of requested classes."""
    names: list[str] = []
    top = 0
    for number, output in enumerate(message.outputs):
        field = f"outputs[{number}]"
        if output.name not in OUTPUTS:
            raise MultigrainError.field(
                f"{field}.name", f"{output.name[:80]!r} is unknown: use {' or '.join(OUTPUTS)}"
            )
        if output.name in names:
            raise MultigrainError.field(f"{field}.name", f"{output.name} is requested twice")
        names.append(output.name)
        known = (CLASSIFICATION,) if output.name == SCORES else ()
        refuse_all(output.parameters, field, known)
        if CLASSIFICATION in output.parameters:
            parameter = output.parameters[CLASSIFICATION]
            top = whole(parameter, f"{field}.parameters.{CLASSIFICATION}", _MAX_TOP)
    return tuple(names), top


def _images(message: service_pb2.ModelInferRequest, max_images: int) -> _Images:
    for number, tensor in enumerate(message.inputs):
        field = f"inputs[{number}]"
        expected = INPUTS.get(tensor.name)
        if expected is None:
            raise MultigrainError.field(
                f"{field}.name", f"{tensor.name[:80]!r} is unknown: use {' or '.join(INPUTS)}"
            )
        if tensor.datatype != expected:
            raise MultigrainError.field(
                f"{field}.datatype",
                f"{tensor.datatype[:80]!r} is not accepted: {tensor.name} are {expected}",
            )
        refuse_all(tensor.parameters, field)
    if len(message.inputs) != 1:
        # The metadata cannot say that they are alternatives: perf_analyzer sends all by default.
        hint = " (perf_analyzer: name one in the file of --input-data)" if message.inputs else ""
        raise MultigrainError.field(
            "inputs",
            f"has {len(message.inputs)} tensors: send either {' or '.join(INPUTS)}{hint}",
        )
    tensor = message.inputs[0]
    # Read once: each access of a repeated field copies the bytes.
    raw = list(message.raw_input_contents)
    typed = tensor.HasField("contents") and tensor.contents.ByteSize() > 0
    if raw and typed:
        raise MultigrainError.field(
            "inputs[0].contents", "must be empty when raw_input_contents is used"
        )
    if raw and len(raw) != 1:
        raise MultigrainError.field(
            "raw_input_contents", f"has {len(raw)} entries for one input: send one for each"
        )
    images = _count(tensor, max_images)
    if tensor.name == IMAGES:
        if raw:
            return _Images(split_bytes(raw[0], images, "raw_input_contents[0]"))
        return _Images(_typed_files(tensor, images))
    side = _side(tensor)
    if raw:
        pixels, field = raw[0], "raw_input_contents[0]"
    else:
        pixels, field = _typed_pixels(tensor), "inputs[0].contents.fp32_contents"
    return _Images(split_floats(pixels, images, 3 * side * side, field), side)


def _count(tensor: _Input, most: int) -> int:
    """The number of images, checked before the contents are read."""
    shape = list(tensor.shape)
    field = "inputs[0].shape"
    if tensor.name == IMAGES:
        good = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
        expected = "[N, 1] or [N]"
    else:
        good = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] > 0
        expected = "[N, 3, side, side]"
    if not good or shape[0] < 1:
        raise MultigrainError.field(
            field, f"{shape[:8]} is not the shape of {tensor.name}, which is {expected}, N from 1"
        )
    if shape[0] > most:
        raise MultigrainError.field(
            field, f"has {shape[0]} images, at most {most} in a request: split them"
        )
    return shape[0]


def _side(tensor: _Input) -> int:
    return tensor.shape[2]


def _typed_files(tensor: _Input, images: int) -> list[bytes]:
    _check_only(tensor, "bytes_contents")
    files = list(tensor.contents.bytes_contents)
    if len(files) != images:
        raise MultigrainError.field(
            "inputs[0].contents.bytes_contents",
            f"has {len(files)} elements, the shape says {images}",
        )
    return files


def _typed_pixels(tensor: _Input) -> bytes:
    _check_only(tensor, "fp32_contents")
    return pack_floats(tensor.contents.fp32_contents)


def _check_only(tensor: _Input, wanted: str) -> None:
    for field, _ in tensor.contents.ListFields():
        if field.name != wanted:
            raise MultigrainError.field(
                f"inputs[0].contents.{field.name}",
                f"{tensor.name} are {tensor.datatype}: use {wanted} or raw_input_contents",
            )
