"""Health and reflection of a running daemon."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from multigrain_server.app import App
from multigrain_server.service_names import ALL, ALWAYS_READY, EMBEDDING, INFERENCE
from tests.contract import services

Status = health_pb2.HealthCheckResponse


async def _check(channel: grpc.aio.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_services_without_models_are_ready_at_once(channel: grpc.aio.Channel) -> None:
    assert set(ALL) == {*services(), *services("v1/inference")}
    for service in ("", *ALWAYS_READY):
        assert await _check(channel, service) == Status.SERVING
    for service in (EMBEDDING, INFERENCE):
        assert await _check(channel, service) == Status.NOT_SERVING


async def test_list_has_every_service(channel: grpc.aio.Channel) -> None:
    answer = await health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest())
    found = {name: health.status for name, health in answer.statuses.items()}
    assert found == {
        **dict.fromkeys(("", *ALWAYS_READY), Status.SERVING),
        **dict.fromkeys((EMBEDDING, INFERENCE), Status.NOT_SERVING),
    }


async def test_an_unknown_service_is_not_found(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _check(channel, "multigrain.v1.Nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    said = caught.value.details() or ""
    assert said.startswith("no service 'multigrain.v1.Nothing': leave it out, or name one of ")
    assert EMBEDDING in said


@pytest.mark.parametrize("service", [EMBEDDING, INFERENCE])
async def test_watch_reports_changes(app: App, channel: grpc.aio.Channel, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
    assert (await watch.read()).status == Status.NOT_SERVING
    app.health.on_health(EMBEDDING, True)
    assert (await watch.read()).status == Status.SERVING
    app.health.drain()
    assert (await watch.read()).status == Status.NOT_SERVING
    watch.cancel()
    await asyncio.sleep(0)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes_the_services(
    channel: grpc.aio.Channel, version: str
) -> None:
    service = f"grpc.reflection.{version}.ServerReflection"
    call = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    questions = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=service),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=EMBEDDING),
    ]
    listed, own, ours = [answer async for answer in call(iter(questions))]
    names = {service.name for service in listed.list_services_response.service}
    assert {*ALL, "grpc.health.v1.Health", service} <= names
    for answer, name in ((own, service), (ours, EMBEDDING)):
        file = FileDescriptorProto.FromString(
            answer.file_descriptor_response.file_descriptor_proto[0]
        )
        assert name in {f"{file.package}.{service.name}" for service in file.service}
