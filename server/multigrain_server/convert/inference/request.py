"""ModelInfer requests as requests of the serving core."""

from __future__ import annotations

from dataclasses import dataclass

from multigrain.engine.wire import VectorWants
from multigrain.errors import MultigrainError
from multigrain.v1.inference import service_pb2
from multigrain_server.convert.inference.names import (
    CLASSIFICATION,
    EMBEDDING,
    IMAGES,
    INPUTS,
    OUTPUTS,
    SCORES,
)
from multigrain_server.convert.inference.parameters import (
    refuse_all,
    request_parameters,
    whole,
)
from multigrain_server.convert.inference.tensors import pack_floats, split_bytes, split_floats
from multigrain_server.serving.request import ImageRequest

_Input = service_pb2.ModelInferRequest.InferInputTensor
_Contents = service_pb2.InferTensorContents
# Far above any bundle's classes.
_MAX_TOP = 1 << 31


@dataclass(frozen=True)
class InferRequest:
    """A request, and what its response must hold.

    Attributes:
        request: for the core.
        id: the caller's.
        outputs: names in the order wanted; none = all that the model has.
        top: classes wanted in place of the scores; 0 = the scores.
    """

    request: ImageRequest
    id: str
    outputs: tuple[str, ...]
    top: int


@dataclass(frozen=True)
class _Images:
    """Files, or prepared images of one ``resolution``."""

    items: list[bytes]
    resolution: int = 0


def infer_request(
    message: service_pb2.ModelInferRequest,
    model: str,
    *,
    max_images: int,
    received_ns: int,
    deadline_ns: int,
) -> InferRequest:
    """Checks everything that can be checked without the model.

    Args:
        message: as it came.
        model: its ``model_name`` and ``model_version`` as "name@version".
        max_images: of a request.
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
            f"is {wanted.resolution}, but the prepared images have {images.resolution} pixels",
        )
    if wanted.timeout_ns:
        end = received_ns + wanted.timeout_ns
        deadline_ns = min(end, deadline_ns) if deadline_ns else end
    embeds = EMBEDDING in outputs or not outputs
    request = ImageRequest(
        model=model,
        images=images.items,
        tensors=images.resolution > 0,
        resolution=images.resolution or wanted.resolution,
        vector=VectorWants(normalize=wanted.normalize, whiten=wanted.whiten) if embeds else None,
        classes=top > 0,
        top_k=top,
        scores=not top and (SCORES in outputs or not outputs),
        received_ns=received_ns,
        deadline_ns=deadline_ns,
    )
    return InferRequest(request, message.id, outputs, top)


def _outputs(message: service_pb2.ModelInferRequest) -> tuple[tuple[str, ...], int]:
    """The names that are wanted, and how many classes."""
    names: list[str] = []
    top = 0
    for number, output in enumerate(message.outputs):
        field = f"outputs[{number}]"
        if output.name not in OUTPUTS:
            raise MultigrainError.field(
                f"{field}.name", f"{output.name[:80]!r} is unknown: use {' or '.join(OUTPUTS)}"
            )
        if output.name in names:
            raise MultigrainError.field(f"{field}.name", f"{output.name} is asked for twice")
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
        raise MultigrainError.field(
            "inputs",
            f"has {len(message.inputs)} tensors: send either {' or '.join(INPUTS)}",
        )
    tensor = message.inputs[0]
    # Once: each access of a repeated field makes a copy of the bytes.
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
    """The number of images, checked before anything is made of the contents."""
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
