"""The REST form of the Open Inference Protocol: JSON, with tensors in it or as bytes after it."""

from __future__ import annotations

import base64
import binascii
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import parse_json
from multigrain.v1.inference import service_pb2
from multigrain_server.convert.inference_request import (
    FLOAT_BYTES,
    join_bytes,
    pack_floats,
    split_bytes,
)
from multigrain_server.http.bodies import MAX_TENSOR_JSON_BYTES

#: Bytes of the JSON part of a body that continues with tensors.
LENGTH_HEADER = "Inference-Header-Content-Length"
_INT64 = 1 << 63
_DEEPEST = 8
_REQUEST = frozenset(("id", "parameters", "inputs", "outputs"))
_INPUT = frozenset(("name", "shape", "datatype", "parameters", "data"))
_OUTPUT = frozenset(("name", "parameters"))


@dataclass
class RestRequest:
    """A request of the protocol.

    Attributes:
        message: the same request for gRPC.
        binary: outputs that the client wants as bytes.
        binary_by_default: whether it wants those that it does not name as bytes.
    """

    message: service_pb2.ModelInferRequest
    binary: dict[str, bool] = field(default_factory=dict)
    binary_by_default: bool = False

    def is_binary(self, output: str) -> bool:
        """Whether an output is sent as bytes."""
        return self.binary.get(output, self.binary_by_default)


def read_request(
    body: bytes | bytearray, length: str | None, name: str, version: str
) -> RestRequest:
    """The request in a body.

    Args:
        body: JSON, or JSON and tensors.
        length: the header with the bytes of the JSON; None = all of them.
        name: of the model, from the path.
        version: from the path, or "".

    Raises:
        MultigrainError: INVALID_FIELD, with the path of the field.
    """
    head = _head_bytes(body, length)
    found = _object(_json(bytes(body[:head])), "the request", _REQUEST)
    rest = memoryview(body)[head:]
    message = service_pb2.ModelInferRequest(model_name=name, model_version=version)
    message.id = _text(found.get("id", ""), "id")
    request = RestRequest(message)
    parameters = _parameters(found, "parameters")
    request.binary_by_default = _flag(
        parameters.pop("binary_data_output", False), "parameters.binary_data_output"
    )
    _set(message.parameters, parameters, "parameters")
    for at, item in enumerate(_list(found.get("outputs", []), "outputs")):
        path = f"outputs[{at}]"
        entry = _object(item, path, _OUTPUT)
        output = message.outputs.add(name=_text(entry.get("name", ""), f"{path}.name"))
        parameters = _parameters(entry, f"{path}.parameters")
        if "binary_data" in parameters:
            wanted = _flag(parameters.pop("binary_data"), f"{path}.parameters.binary_data")
            request.binary[output.name] = wanted
        _set(output.parameters, parameters, f"{path}.parameters")
    at_byte = 0
    for at, item in enumerate(_list(found.get("inputs"), "inputs")):
        at_byte = _add_input(message, _object(item, f"inputs[{at}]", _INPUT), at, rest, at_byte)
    if at_byte != len(rest):
        raise MultigrainError(
            ErrorKind.INVALID_FIELD,
            f"{len(rest)} bytes follow the JSON, the inputs' binary_data_size add up to {at_byte}",
        )
    return request


def response_parts(
    response: service_pb2.ModelInferResponse, request: RestRequest
) -> tuple[bytes, list[bytes]]:
    """The JSON of a response, and the tensors that follow it as bytes."""
    outputs: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        made: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if request.is_binary(output.name):
            made["parameters"] = {"binary_data_size": len(raw)}
            tensors.append(raw)
        else:
            made["data"] = _data(output.datatype, list(output.shape), raw)
        outputs.append(made)
    head = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        **({"id": response.id} if response.id else {}),
        "outputs": outputs,
    }
    return json.dumps(head).encode(), tensors


def _data(datatype: str, shape: list[int], raw: bytes) -> list[Any]:
    if datatype == "BYTES":
        elements = 1
        for size in shape:
            elements *= size
        return [item.decode() for item in split_bytes(raw, elements, "outputs")]
    numbers = array("f")
    numbers.frombytes(raw)
    return numbers.tolist()


def _head_bytes(body: bytes | bytearray, length: str | None) -> int:
    if length is None:
        head = len(body)
    elif length.isascii() and length.isdecimal() and len(length) < 12 and int(length) <= len(body):
        head = int(length)
    else:
        raise MultigrainError.field(
            LENGTH_HEADER,
            f"{length[:80]!r} must be a number of bytes within the body's {len(body)}",
        )
    if head > MAX_TENSOR_JSON_BYTES:
        raise MultigrainError(
            ErrorKind.INVALID_FIELD,
            f"the JSON has {head} bytes, at most {MAX_TENSOR_JSON_BYTES} are accepted: send "
            "tensors as binary data",
        )
    return head


def _json(text: bytes) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        what = str(error)[:300]
        raise MultigrainError(
            ErrorKind.INVALID_FIELD, f"cannot parse the request: {what}"
        ) from None


def _add_input(
    message: service_pb2.ModelInferRequest,
    entry: dict[str, Any],
    number: int,
    rest: memoryview,
    at: int,
) -> int:
    """Adds an input, whose bytes begin at ``at``; returns where the next one's begin."""
    path = f"inputs[{number}]"
    tensor = message.inputs.add(
        name=_text(entry.get("name", ""), f"{path}.name"),
        datatype=_text(entry.get("datatype", ""), f"{path}.datatype"),
    )
    for size in _list(entry.get("shape"), f"{path}.shape"):
        tensor.shape.append(_whole(size, f"{path}.shape"))
    parameters = _parameters(entry, f"{path}.parameters")
    size = parameters.pop("binary_data_size", None)
    # As MLServer writes it; there is no other way to send files in JSON.
    content = parameters.pop("content_type", "base64")
    if content != "base64":
        raise MultigrainError.field(f"{path}.parameters.content_type", "must be base64")
    _set(tensor.parameters, parameters, f"{path}.parameters")
    if size is not None:
        if "data" in entry:
            raise MultigrainError.field(f"{path}.data", "must not stand beside binary_data_size")
        count = _whole(size, f"{path}.parameters.binary_data_size")
        if not 0 <= count <= len(rest) - at:
            raise MultigrainError.field(
                f"{path}.parameters.binary_data_size",
                f"is {count}, but {len(rest) - at} bytes are left in the body",
            )
        message.raw_input_contents.append(bytes(rest[at : at + count]))
        return at + count
    values = _flat(_list(entry.get("data"), f"{path}.data"), f"{path}.data")
    if tensor.datatype == "BYTES":
        files = [_file(value, f"{path}.data") for value in values]
        message.raw_input_contents.append(join_bytes(files))
    else:
        message.raw_input_contents.append(_floats(list(values), f"{path}.data"))
    return at


def _floats(values: list[Any], path: str) -> bytes:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MultigrainError.field(path, f"{value!r:.80} is not a number")
    try:
        packed = pack_floats(values)
    except OverflowError:
        raise MultigrainError.field(path, "has a number beyond FP32's range") from None
    assert len(packed) == FLOAT_BYTES * len(values)
    return packed


def _file(value: Any, path: str) -> bytes:
    try:
        return base64.b64decode(_text(value, path), validate=True)
    except (binascii.Error, ValueError):
        raise MultigrainError.field(
            path, "must be files in base64, or send them as binary data"
        ) from None


def _flat(values: list[Any], path: str, depth: int = 0) -> Iterator[Any]:
    """The elements of a list that may be nested as its shape is."""
    if depth > _DEEPEST:
        raise MultigrainError.field(path, "is nested too deeply")
    for value in values:
        if isinstance(value, list):
            yield from _flat(value, path, depth + 1)
        else:
            yield value


def _set(target: Any, values: dict[str, Any], path: str) -> None:
    """Sets the parameters of a message."""
    for name, value in values.items():
        parameter = target[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int):
            parameter.int64_param = _whole(value, f"{path}.{name}")
        elif isinstance(value, float):
            parameter.double_param = value
        else:
            parameter.string_param = _text(value, f"{path}.{name}")


def _parameters(entry: dict[str, Any], path: str) -> dict[str, Any]:
    found = entry.get("parameters", {})
    if not isinstance(found, dict):
        raise MultigrainError.field(path, "must be an object")
    return dict(found)


def _object(value: Any, what: str, known: frozenset[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MultigrainError(ErrorKind.INVALID_FIELD, f"{what} must be a JSON object")
    for name in value:
        if name not in known:
            raise MultigrainError.field(
                name[:80], f"is unknown in {what}: known are {', '.join(sorted(known))}"
            )
    return value


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise MultigrainError.field(path, "must be a list")
    return value


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise MultigrainError.field(path, "must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MultigrainError.field(path, "has unpaired surrogates") from None
    return value


def _flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise MultigrainError.field(path, "must be true or false")
    return value


def _whole(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -_INT64 <= value < _INT64:
        raise MultigrainError.field(path, "must be a whole number of 64 bits")
    return value
