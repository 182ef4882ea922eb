"""Programs of clients that are killed in the middle of a call: each says when it is there."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import grpc

from multigrain.v1.embedding_pb2 import ClassifyRequest, EmbedRequest
from multigrain.v1.embedding_pb2_grpc import EmbeddingServiceStub
from multigrain.v1.inference.service_pb2 import ModelInferRequest
from multigrain.v1.inference.service_pb2_grpc import GRPCInferenceServiceStub
from multigrain.v1.job_pb2 import StreamEventsRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain.v1.model_pb2 import DownloadModelRequest, ImportModelRequest
from multigrain.v1.model_pb2_grpc import ModelServiceStub
from tests.engine.pictures import picture

Say = Callable[[], None]


def upload(channel: grpc.Channel, _job: str, there: Say) -> None:
    def parts() -> Iterator[ImportModelRequest]:
        yield ImportModelRequest(start=ImportModelRequest.Start(name="half"))
        for number in range(2000):
            yield ImportModelRequest(chunk=os.urandom(1 << 18))
            if number == 2:
                there()
            time.sleep(0.005)

    ModelServiceStub(channel).ImportModel(parts())


def download(channel: grpc.Channel, _job: str, there: Say) -> None:
    while True:
        for _ in ModelServiceStub(channel).DownloadModel(DownloadModelRequest(model="tiny")):
            there()


def stream(channel: grpc.Channel, _job: str, there: Say) -> None:
    request = EmbedRequest(images=[picture(seed) for seed in range(4)])

    def requests() -> Iterator[EmbedRequest]:
        while True:
            yield request

    for _ in EmbeddingServiceStub(channel).EmbedStream(requests()):
        there()


def triton_stream(channel: grpc.Channel, _job: str, there: Say) -> None:
    data = picture(3)
    request = ModelInferRequest(model_name="tiny")
    request.inputs.add(name="images", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(len(data).to_bytes(4, "little") + data)

    def requests() -> Iterator[ModelInferRequest]:
        while True:
            yield request

    for answer in GRPCInferenceServiceStub(channel).ModelStreamInfer(requests()):
        assert not answer.error_message, answer.error_message
        there()


def batch(channel: grpc.Channel, _job: str, there: Say) -> None:
    embed = EmbeddingServiceStub(channel).Embed
    request = EmbedRequest(images=[picture(1, size=(300, 300))] * 64)
    while True:
        calls = [embed.future(request) for _ in range(2)]
        there()
        for call in calls:
            call.exception()


def classify(channel: grpc.Channel, _job: str, there: Say) -> None:
    call = EmbeddingServiceStub(channel).Classify
    while True:
        call(ClassifyRequest(images=[picture(2)], top_k=2))
        there()


def events(channel: grpc.Channel, job: str, there: Say) -> None:
    for _ in JobServiceStub(channel).StreamEvents(StreamEventsRequest(job_id=job, follow=True)):
        there()


KINDS = (upload, download, stream, triton_stream, batch, classify, events)


def run(kind: int, address: str, job: str, there: Connection) -> None:
    """Sends a byte once it is in the middle of its call, and goes on until it is killed."""
    said = False

    def say() -> None:
        nonlocal said
        if not said:
            said = True
            there.send_bytes(b"!")

    with grpc.insecure_channel(address) as channel:
        while True:
            # A busy daemon may refuse: then again.
            with contextlib.suppress(grpc.RpcError):
                KINDS[kind](channel, job, say)
            time.sleep(0.01)
