"""Every rule of a ModelInfer request that needs no model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.v1.inference import service_pb2
from multigrain_server.access.client import Origin
from multigrain_server.convert.inference_request import (
    InferRequest,
    infer_request,
    join_bytes,
    split_bytes,
)
from tests.server.grpc.inference_messages import files, pixels, raw_bytes, want

Request = service_pb2.ModelInferRequest
IMAGES = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)


def parsed(message: Request, **fields: int) -> InferRequest:
    arguments = {"max_images": 4, "received_ns": 1000, "deadline_ns": 0, **fields}
    sender = Origin("trainer", "ipv4:10.0.0.1:50123")
    return infer_request(message, "tiny@1", sender=sender, **arguments)


@pytest.mark.parametrize("raw", [True, False])
def test_files_may_be_raw_or_typed(raw: bool) -> None:
    asked = parsed(files(b"one", b"", b"three", raw=raw, id="x"))
    assert asked.request.images == [b"one", b"", b"three"]
    assert not asked.request.tensors
    assert (asked.request.model, asked.request.resolution, asked.id) == ("tiny@1", 0, "x")


def test_the_shape_of_files_may_lack_its_second_dimension() -> None:
    message = files(b"one", b"two")
    message.inputs[0].shape[:] = [2]
    assert parsed(message).request.images == [b"one", b"two"]


@pytest.mark.parametrize("raw", [True, False])
def test_preprocessed_images_may_be_raw_or_typed(raw: bool) -> None:
    request = parsed(pixels(IMAGES, raw)).request
    assert (request.tensors, request.resolution) == (True, 4)
    assert request.images == [image.tobytes() for image in IMAGES]


def test_all_outputs_are_returned_unless_some_are_requested() -> None:
    every = parsed(files(b"x")).request
    assert every.vector is not None
    assert every.scores
    message = files(b"x")
    want(message, "scores")
    asked = parsed(message)
    assert (asked.request.vector, asked.request.scores, asked.outputs) == (None, True, ("scores",))
    message = files(b"x")
    want(message, "scores", "embedding", top=3)
    asked = parsed(message)
    assert asked.outputs == ("scores", "embedding")
    assert (asked.top, asked.request.top_k) == (3, 3)
    assert not asked.request.scores


def test_parameters_are_those_of_embed() -> None:
    message = files(b"x")
    message.parameters["resolution"].int64_param = 64
    message.parameters["normalize"].bool_param = False
    message.parameters["whiten"].bool_param = True
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    request = parsed(message).request
    assert request.resolution == 64
    assert request.vector is not None
    assert (request.vector.normalize, request.vector.whiten) == (False, True)


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
def test_a_timeout_in_microseconds_shortens_the_deadline(kind: str) -> None:
    message = files(b"x")
    for name, value in {"timeout": 50, "priority": 3}.items():
        setattr(message.parameters[name], kind, value)
    assert parsed(message).request.deadline_ns == 51_000
    assert parsed(message, deadline_ns=20_000).request.deadline_ns == 20_000
    assert parsed(message, deadline_ns=90_000).request.deadline_ns == 51_000


def _set(message: Request, path: str, value: object) -> None:
    names = path.split(".")
    target = message
    for name in names[:-1]:
        target = target[int(name)] if name.isdigit() else getattr(target, name)
    if isinstance(value, list):
        getattr(target, names[-1])[:] = value
    else:
        setattr(target, names[-1], value)


@pytest.mark.parametrize(
    ("message", "path", "value", "field", "says"),
    [
        (files(b"x"), "inputs.0.name", "image", "inputs[0].name", "images or pixels"),
        (files(b"x"), "inputs.0.datatype", "UINT8", "inputs[0].datatype", "'UINT8'"),
        (pixels(IMAGES), "inputs.0.datatype", "FP16", "inputs[0].datatype", "pixels are FP32"),
        (pixels(IMAGES), "inputs.0.datatype", "BF16", "inputs[0].datatype", "'BF16'"),
        (files(b"x"), "inputs.0.shape", [], "inputs[0].shape", "[N, 1] or [N]"),
        (files(b"x"), "inputs.0.shape", [0, 1], "inputs[0].shape", "N from 1"),
        (files(b"x"), "inputs.0.shape", [-1, 1], "inputs[0].shape", "N from 1"),
        (files(b"x"), "inputs.0.shape", [1, 2], "inputs[0].shape", "[1, 2]"),
        (files(b"x"), "inputs.0.shape", [5, 1], "inputs[0].shape", "at most 4"),
        (files(b"x"), "inputs.0.shape", [1 << 62], "inputs[0].shape", "at most 4"),
        (files(b"x"), "inputs.0.shape", [2, 1], "raw_input_contents[0]", "ends after 1"),
        (files(b"x", b"y"), "inputs.0.shape", [1, 1], "raw_input_contents[0]", "after the 1"),
        (pixels(IMAGES), "inputs.0.shape", [2, 3, 4], "inputs[0].shape", "[N, 3, side, side]"),
        (pixels(IMAGES), "inputs.0.shape", [2, 4, 3, 4], "inputs[0].shape", "[2, 4, 3, 4]"),
        (pixels(IMAGES), "inputs.0.shape", [2, 3, 4, 8], "inputs[0].shape", "side"),
        (pixels(IMAGES), "inputs.0.shape", [2, 3, 0, 0], "inputs[0].shape", "side"),
        (pixels(IMAGES), "inputs.0.shape", [2, 3, 5, 5], "raw_input_contents[0]", "384 bytes"),
        (pixels(IMAGES), "inputs.0.shape", [2, 3, 1 << 40, 1 << 40], "raw_input_contents[0]", ""),
        (
            pixels(IMAGES, False),
            "inputs.0.shape",
            [3, 3, 4, 4],
            "inputs[0].contents.fp32_contents",
            "FP32 tensor",
        ),
        (files(b"x", raw=False), "inputs.0.shape", [2], "inputs[0].contents.bytes_contents", "1"),
        (files(b"x"), "raw_input_contents", [b"\0" * 3], "raw_input_contents[0]", "ends after 0"),
        (files(b"x"), "raw_input_contents", [], "inputs[0].contents.bytes_contents", "0 elements"),
        (
            files(b"x"),
            "raw_input_contents",
            [b"\xff\xff\xff\xffx"],
            "raw_input_contents[0]",
            "4294967295 bytes, and 1 are left",
        ),
        (
            files(b"x"),
            "raw_input_contents",
            [raw_bytes(b"x"), raw_bytes(b"y")],
            "raw_input_contents",
            "2 entries",
        ),
    ],
)
def test_an_invalid_tensor_is_refused_by_name(
    message: Request, path: str, value: object, field: str, says: str
) -> None:
    _set(message, path, value)
    with pytest.raises(MultigrainError) as caught:
        parsed(message)
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert [violation.field for violation in caught.value.violations] == [field]
    assert says in caught.value.message


def _mixed(message: Request) -> None:
    message.inputs[0].contents.bytes_contents.append(b"x")


def _other_contents(message: Request) -> None:
    del message.raw_input_contents[:]
    message.inputs[0].contents.fp32_contents.append(1)


def _both(message: Request) -> None:
    message.inputs.add(name="pixels", datatype="FP32", shape=[1, 3, 1, 1])
    message.raw_input_contents.append(bytes(12))


def _no_input(message: Request) -> None:
    message.ClearField("inputs")


def _output(message: Request) -> None:
    want(message, "embedding", "logits")


def _twice(message: Request) -> None:
    want(message, "scores", "scores")


def _classified_embedding(message: Request) -> None:
    message.outputs.add(name="embedding").parameters["classification"].int64_param = 1


def _negative(message: Request) -> None:
    message.parameters["timeout"].int64_param = -1


def _misspelt(message: Request) -> None:
    message.parameters["resolutoin"].int64_param = 4


def _wrong_type(message: Request) -> None:
    message.parameters["normalize"].string_param = "yes"


def _sequence(message: Request) -> None:
    message.parameters["sequence_id"].int64_param = 7


def _input_parameter(message: Request) -> None:
    message.inputs[0].parameters["binary_data_size"].int64_param = 5


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        (_mixed, "inputs[0].contents", "must be empty"),
        (_other_contents, "inputs[0].contents.fp32_contents", "use bytes_contents"),
        (_both, "inputs", "either images or pixels"),
        (_no_input, "inputs", "0 tensors"),
        (_output, "outputs[1].name", "'logits'"),
        (_twice, "outputs[1].name", "twice"),
        (_classified_embedding, "outputs[0].parameters", "'classification'"),
        (_negative, "parameters.timeout", "whole number"),
        (_misspelt, "parameters", "did you mean resolution?"),
        (_wrong_type, "parameters.normalize", "bool_param"),
        (_sequence, "parameters.sequence_id", "sequence"),
        (_input_parameter, "inputs[0].parameters", "'binary_data_size'"),
    ],
)
def test_an_invalid_request_is_refused_by_name(
    change: Callable[[Request], None], field: str, says: str
) -> None:
    message = files(b"x")
    change(message)
    with pytest.raises(MultigrainError) as caught:
        parsed(message)
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert [violation.field for violation in caught.value.violations] == [field]
    assert says in caught.value.message


def test_a_resolution_parameter_must_match_preprocessed_images() -> None:
    message = pixels(IMAGES)
    message.parameters["resolution"].int64_param = 4
    parsed(message)
    message.parameters["resolution"].int64_param = 8
    with pytest.raises(MultigrainError, match=r"parameters\.resolution: is 8"):
        parsed(message)


@pytest.mark.parametrize("place", ["inputs", "outputs"])
def test_shared_memory_is_not_offered(place: str) -> None:
    message = files(b"x")
    want(message, "embedding")
    getattr(message, place)[0].parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(MultigrainError) as caught:
        parsed(message)
    assert caught.value.kind is ErrorKind.UNSUPPORTED


def test_no_more_elements_are_read_than_the_shape_says() -> None:
    elements = [b"", b"abc", b"\0\1\2\3\4"]
    raw = join_bytes(elements)
    assert raw == raw_bytes(*elements)
    assert split_bytes(raw, 3, "f") == elements
    with pytest.raises(MultigrainError, match="after the 1 elements"):
        split_bytes(bytes(4_000_000), 1, "f")
