"""Triton's own client, blocking and asynchronous, on our server."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain.v1.inference import model_pb2, service_pb2
from multigrain_server.grpc.inference import UNOFFERED
from tests.engine.bundles import CLASSES, EMBEDDING, SIZE, TinyNetwork, write_bundle
from tests.engine.pictures import picture
from tests.server.grpc.serving import serving

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.process]
PROGRAM = Path(__file__).with_name("triton_program.py")
PICTURES = [picture(seed) for seed in range(3)]
Json = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Json]:
    """What the program reported, of one run."""
    root = tmp_path_factory.mktemp("served")
    write_bundle(root / "models", network=TinyNetwork(seed=1))
    for number, data in enumerate(PICTURES):
        (root / f"{number}.png").write_bytes(data)
    async with serving(root) as s:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", str(PROGRAM), s.address, "tiny"),
            *(str(root / f"{number}.png") for number in range(len(PICTURES))),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
    yield json.loads(output)


def _expected() -> list[np.ndarray]:
    network = TinyNetwork(seed=1)
    parameters = Preprocessing(size=SIZE, resize_short=SIZE)
    return [network.embed(preprocess(data, parameters)) for data in PICTURES]


@pytest.mark.process
async def test_it_loads_describes_and_unloads_models(seen: Json) -> None:
    blocking = seen["blocking"]
    assert blocking["live"] is True
    assert blocking["ready before"] is False
    assert blocking["index before"]["models"][0]["state"] == "UNAVAILABLE"
    assert blocking["server ready"] is blocking["ready"] is True
    assert blocking["server"]["name"] == "multigrain"
    metadata, config = blocking["metadata"], blocking["config"]
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["images", "pixels"]
    assert metadata["inputs"][1]["shape"] == ["-1", "3", str(SIZE), str(SIZE)]
    assert metadata["outputs"][0]["shape"] == ["-1", str(EMBEDDING)]
    assert config["max_batch_size"] == 64
    assert [tensor["data_type"] for tensor in config["input"]] == ["TYPE_STRING", "TYPE_FP32"]
    assert "dynamic_batching" in config
    assert blocking["ready after"] is False


async def test_it_gets_the_networks_numbers(seen: Json) -> None:
    network, blocking = TinyNetwork(seed=1), seen["blocking"]
    expected = np.stack(_expected())
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert (blocking["infer"]["model"], blocking["infer"]["id"]) == ("tiny@1", "one")
    for answer in (blocking["infer"], blocking["async"], blocking["stream"][0]):
        np.testing.assert_allclose(answer["embedding"], unit, rtol=1e-4)
    np.testing.assert_allclose(blocking["zipped"]["embedding"], expected, rtol=1e-4)
    np.testing.assert_allclose(seen["asynchronous"]["embeddings"], unit, rtol=1e-4)
    powers = np.exp([network.logits(row) for row in expected])
    scores = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(blocking["infer"]["scores"], scores, rtol=1e-4)
    best = [[int(text.split(":")[1]) for text in row] for row in blocking["top"]]
    assert best == np.argsort(-scores, axis=1)[:, :2].tolist()
    assert np.shape(blocking["pixels"]["scores"]) == (2, CLASSES)


async def test_a_stream_continues_after_an_error(seen: Json) -> None:
    first, second, third = seen["blocking"]["stream"]
    assert (first["id"], third["id"]) == ("0", "2")
    assert "not an image" in second["error"]
    assert seen["asynchronous"]["stream"] == [[str(number), None] for number in range(3)]


async def test_it_raises_the_errors(seen: Json) -> None:
    errors = seen["blocking"]["errors"]
    assert {name: error["status"] for name, error in errors.items()} == {
        "model": "StatusCode.NOT_FOUND",
        "image": "StatusCode.INVALID_ARGUMENT",
        "shape": "StatusCode.INVALID_ARGUMENT",
        **dict.fromkeys(("memory", "trace", "log", "config"), "StatusCode.UNIMPLEMENTED"),
    }
    assert errors["memory"]["message"] == UNOFFERED["SystemSharedMemoryStatus"]
    assert seen["asynchronous"]["status"] == "StatusCode.INVALID_ARGUMENT"


async def test_statistics_are_those_that_load_generators_read(seen: Json) -> None:
    (blocking,) = seen["blocking"]["statistics"]["model_stats"]
    # infer, zipped, pixels, top, async, and two of the stream; the failed ones beside them.
    assert int(blocking["inference_stats"]["success"]["count"]) >= 7
    assert int(blocking["inference_count"]) == 5 * 3 + 2 + 1
    (later,) = seen["asynchronous"]["statistics"]["model_stats"]
    assert int(later["inference_count"]) == 3 + 3 * 3  # counted from zero after it was reloaded


async def test_every_field_has_tritons_name_number_and_type(seen: Json) -> None:
    pool = descriptor_pool.DescriptorPool()
    for file in seen["contract"]:
        pool.AddSerializedFile(base64.b64decode(file))
    compared = 0
    for file in (model_pb2.DESCRIPTOR, service_pb2.DESCRIPTOR):
        for message in _nested(file.message_types_by_name.values()):
            theirs = pool.FindMessageTypeByName(message.full_name)
            for field in message.fields:
                assert _shape(field) == _shape(theirs.fields_by_name[field.name])
                compared += 1
        for service in file.services_by_name.values():
            theirs = pool.FindServiceByName(service.full_name).methods_by_name
            for method in service.methods:
                other = theirs[method.name]
                assert method.input_type.full_name == other.input_type.full_name
                assert method.output_type.full_name == other.output_type.full_name
                assert method.client_streaming == other.client_streaming
                assert method.server_streaming == other.server_streaming
            # What is left is refused with a reason.
            assert set(theirs) - {method.name for method in service.methods} == set(UNOFFERED)
    assert compared > 100


def _nested(messages: Iterable[Descriptor]) -> Iterable[Descriptor]:
    for message in messages:
        yield message
        yield from _nested(message.nested_types)


def _shape(field: FieldDescriptor) -> tuple[object, ...]:
    kind = field.message_type or field.enum_type
    return (
        *(field.number, field.name, field.type, field.is_repeated),
        kind.full_name if kind is not None else None,
        _values(field.enum_type) if field.enum_type is not None else None,
        field.containing_oneof.name if field.containing_oneof is not None else None,
    )


def _values(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}
