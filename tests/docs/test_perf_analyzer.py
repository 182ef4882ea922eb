"""The input file for perf_analyzer in docs/how-to/triton-clients.md is what the daemon takes."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from multigrain.errors import MultigrainError
from multigrain.v1.inference import service_pb2
from multigrain_server.access.client import Origin
from multigrain_server.convert.inference_request import infer_request
from tests.docs.blocks import blocks

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "triton-clients.md"
FILES = (b"one file", b"", b"\x00\xff" * 100)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The requests in the file that the page's program writes."""
    monkeypatch.chdir(tmp_path)
    paths = []
    for number, content in enumerate(FILES):
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(content)
    (program,) = (block.text for block in blocks(PAGE) if "b64encode" in block.text)
    exec(compile(program, str(PAGE), "exec"), {"paths": paths})
    body: dict[str, list[dict[str, Any]]] = json.loads((tmp_path / "images.json").read_text())
    assert list(body) == ["data"]
    return body["data"]


def images(message: service_pb2.ModelInferRequest) -> list[bytes]:
    parsed = infer_request(
        message,
        "m@1",
        max_images=64,
        sender=Origin("me", ""),
        received_ns=0,
        deadline_ns=0,
    )
    return list(parsed.request.images)


def test_every_request_of_the_file_is_accepted(data: list[dict[str, Any]]) -> None:
    """As perf_analyzer sends it: the decoded bytes are the raw tensor, of the model's shape."""
    for content, request in zip(FILES, data, strict=True):
        message = service_pb2.ModelInferRequest()
        for name, value in request.items():
            message.inputs.add(name=name, datatype="BYTES", shape=[1, 1])
            message.raw_input_contents.append(base64.b64decode(value["b64"]))
        assert images(message) == [content]


def test_a_batch_of_the_file_is_accepted(data: list[dict[str, Any]]) -> None:
    """With -b, perf_analyzer joins the elements."""
    message = service_pb2.ModelInferRequest()
    message.inputs.add(name="images", datatype="BYTES", shape=[len(FILES), 1])
    joined = b"".join(base64.b64decode(request["images"]["b64"]) for request in data)
    message.raw_input_contents.append(joined)
    assert images(message) == list(FILES)


def test_the_commands_read_the_file_over_grpc() -> None:
    commands = re.findall(r"^perf_analyzer .*$", PAGE.read_text(), re.MULTILINE)
    assert len(commands) > 2
    for command in commands:
        assert "-i grpc --input-data images.json" in command


def test_the_defaults_of_perf_analyzer_are_refused_with_what_to_do() -> None:
    message = service_pb2.ModelInferRequest()
    message.inputs.add(name="images", datatype="BYTES", shape=[1, 1])
    message.inputs.add(name="pixels", datatype="FP32", shape=[1, 3, 8, 8])
    message.raw_input_contents.extend([b"\x01\x00\x00\x00x", bytes(3 * 8 * 8 * 4)])
    with pytest.raises(MultigrainError, match=r"either images or pixels .*--input-data"):
        images(message)
