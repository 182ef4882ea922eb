"""Every call of the daemon is given messages that are nearly right."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from multigrain.v1.embedding_pb2 import ClassifyRequest, EmbedRequest
from multigrain.v1.embedding_pb2_grpc import EmbeddingServiceStub
from multigrain.v1.inference.service_pb2 import ModelInferRequest
from multigrain.v1.model_pb2 import ImportModelRequest
from multigrain.v1.training_pb2 import StartTrainingRequest
from multigrain_server.access.policy import RULES
from multigrain_server.app import App
from multigrain_server.config import GrpcConfig, JobsConfig, ServerConfig
from multigrain_server.engines.config import ServingConfig
from multigrain_server.grpc.inference import UNOFFERED
from tests.engine.bundles import write_bundle
from tests.engine.pictures import invalid_images, picture, unusual_images
from tests.fuzz.budget import rounds, seed
from tests.fuzz.mutate import Messages
from tests.server.jobs.conftest import FAKE_RUNNER
from tests.server.runners import runner_pids

pytestmark = pytest.mark.process

# A defect, a call without an answer, or a daemon that is gone.
BAD = {"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS"}
# What is right at the moment after a model was loaded or unloaded by another fuzzed call.
EXPECTED = ("is being", "no engine", "loaded", "unload", "started")
# Calls that end only when their caller does: how long to listen.
LISTEN = 0.05


def methods() -> list[MethodDescriptor]:
    """Of every call that the daemon knows; a new one is here by itself."""
    pool = descriptor_pool.Default()
    names = (name[1:].split("/") for name in sorted(RULES))
    # What is refused whatever it says has no messages.
    offered = [f"{service}.{name}" for service, name in names if name not in UNOFFERED]
    return [pool.FindMethodByName(name) for name in offered]


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    write_bundle(tmp_path / "data" / "models")
    (tmp_path / "images" / "class").mkdir(parents=True)
    (tmp_path / "images" / "class" / "1.png").write_bytes(picture(1))
    config = ServerConfig(
        data_dir=tmp_path / "data",
        data_root=(tmp_path / "images",),
        listen="127.0.0.1:0",
        http_listen="",
        devices="cpu:2",
        grpc=GrpcConfig(max_message_mib=4),
        jobs=JobsConfig(poll_seconds=0.02, heartbeat_seconds=0.2),
        serving=ServingConfig(decode_threads=1, engine_threads=1, max_image_pixels=2_000_000),
    )
    app = App(config, FAKE_RUNNER)
    await app.start()
    await app.models.load("tiny")
    yield app
    for pid in runner_pids(app):
        os.kill(pid, signal.SIGKILL)
    await app.stop()
    await app.close_connections()


async def call(
    channel: grpc.aio.Channel, method: MethodDescriptor, messages: list[bytes]
) -> tuple[str, str]:
    """Status and details. Of an endless answer only the beginning is read."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    shape = f"{'stream' if method.client_streaming else 'unary'}_" + (
        "stream" if method.server_streaming else "unary"
    )
    make = getattr(channel, shape)(path)

    async def several() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    started = make(several() if method.client_streaming else messages[0], timeout=60)
    try:
        if not method.server_streaming:
            await started
        else:
            async with asyncio.timeout(None if method.client_streaming else LISTEN):
                async for _ in started:
                    pass
    except TimeoutError:
        started.cancel()
        return "CANCELLED", ""
    except grpc.aio.AioRpcError as error:
        if "Internal error from Core" in (error.details() or ""):
            # grpc.aio's own, when the call ended before all was sent; the server counts its own.
            return "UNSEEN", ""
        return error.code().name, error.details() or ""
    return "OK", ""


def templates(images: Path) -> dict[str, Message]:
    """Messages that are right, to be harmed a little."""
    data = picture(1)
    infer = ModelInferRequest(model_name="tiny", raw_input_contents=[framed(data)])
    infer.inputs.add(name="images", datatype="BYTES", shape=[1, 1])
    training = StartTrainingRequest(name="a", labels={"events": "2"})
    training.spec.preset = "digits-demo"
    training.spec.dataset.train_path = str(images)
    training.spec.dataset.val_path = ""
    right = (
        EmbedRequest(images=[data, picture(2)], model="tiny"),
        ClassifyRequest(images=[data], top_k=3),
        infer,
        training,
        ImportModelRequest(start=ImportModelRequest.Start(name="copy")),
    )
    return {message.DESCRIPTOR.full_name: message for message in right}


def framed(data: bytes) -> bytes:
    """An element of a BYTES tensor."""
    return len(data).to_bytes(4, "little") + data


async def test_no_message_makes_a_call_fail_as_if_the_daemon_were_at_fault(app: App) -> None:
    chance = random.Random(seed())
    pictures = [picture(1), *unusual_images().values(), *invalid_images().values(), b"\0" * 12]
    images, jobs = app.config.data_root[0], app.config.data_dir / "jobs"
    words = ["tiny", "tiny@1", "tiny@2", "copy", "production", "openvino", "auto", "digits-demo"]
    words += [str(images), str(images / "class"), str(app.config.data_dir), "images", "embedding"]
    words += ["BYTES", "FP32", "key", "top1", "resnet18", "cpu", "best", "latest", "1", "crop"]
    make = Messages(chance, words, pictures, templates(images))
    known, codes = methods(), Counter[str]()
    async with grpc.aio.insecure_channel(app.address) as channel:
        for number in rounds(4 * len(known)):
            method = known[number % len(known)]
            kind = message_factory.GetMessageClass(method.input_type)
            messages = [make.encoded(kind()) for _ in range(1 + 2 * method.client_streaming)]
            code, details = await call(channel, method, messages)
            codes[code] += 1
            assert sys.prefix not in details
            assert str(Path(__file__).parents[2]) not in details
            expected = code == "UNAVAILABLE" and any(word in details for word in EXPECTED)
            if code in BAD and not expected:
                shown = [message.hex()[:4000] for message in messages]
                pytest.fail(f"{method.full_name}: {code} {details} of {shown}")
            if not number % len(known):
                words += [path.name for path in jobs.iterdir() if path.name not in words]
        print(dict(codes))
        # It answers as before.
        write_bundle(app.config.data_dir / "models", "whole")
        app.models.publish()
        await app.models.load("whole")
        request = EmbedRequest(model="whole", images=[picture(1)])
        answer = await EmbeddingServiceStub(channel).Embed(request, timeout=60)
        assert not answer.results[0].status.code
    counted_by_server = {
        sample.labels["code"]
        for family in app.registry.collect()
        if family.name == "multigrain_requests"
        for sample in family.samples
    }
    assert not counted_by_server & {"INTERNAL", "UNKNOWN", "DATA_LOSS"}
    assert codes["OK"]
    assert codes["INVALID_ARGUMENT"]
