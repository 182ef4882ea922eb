"""Messages of the Open Inference Protocol, for tests."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from multigrain.v1.inference import service_pb2


def raw_bytes(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in elements)


def files(*images: bytes, raw: bool = True, **fields: object) -> service_pb2.ModelInferRequest:
    """A request with encoded files."""
    request = service_pb2.ModelInferRequest(**fields)
    tensor = request.inputs.add(name="images", datatype="BYTES", shape=[len(images), 1])
    if raw:
        request.raw_input_contents.append(raw_bytes(*images))
    else:
        tensor.contents.bytes_contents.extend(images)
    return request


def pixels(
    images: NDArray[np.float32], raw: bool = True, **fields: object
) -> service_pb2.ModelInferRequest:
    """A request with prepared images (N, 3, S, S)."""
    request = service_pb2.ModelInferRequest(**fields)
    tensor = request.inputs.add(name="pixels", datatype="FP32", shape=images.shape)
    if raw:
        request.raw_input_contents.append(images.astype("<f4").tobytes())
    else:
        tensor.contents.fp32_contents.extend(images.ravel().tolist())
    return request


def want(request: service_pb2.ModelInferRequest, *names: str, top: int = 0) -> None:
    """Asks for outputs; ``top`` classes in place of the scores."""
    for name in names:
        output = request.outputs.add(name=name)
        if top and name == "scores":
            output.parameters["classification"].int64_param = top


def array(response: service_pb2.ModelInferResponse, name: str) -> NDArray[np.float32]:
    """An FP32 output, found as Triton's client finds it."""
    for number, output in enumerate(response.outputs):
        if output.name == name:
            assert output.datatype == "FP32"
            raw = np.frombuffer(response.raw_output_contents[number], "<f4")
            return raw.reshape(output.shape)
    raise AssertionError(f"no output {name}")
