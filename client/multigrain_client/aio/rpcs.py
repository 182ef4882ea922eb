"""Every RPC of the contract under its own name, as coroutines."""

# ruff: noqa: N802, ASYNC109 - names are the contract's; a time-out is the server's deadline.

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from multigrain.v1 import (
    embedding_pb2,
    evaluation_pb2,
    export_pb2,
    job_pb2,
    model_pb2,
    training_pb2,
)
from multigrain_client import methods
from multigrain_client.aio.transport import AsyncTransport
from multigrain_client.messages import build
from multigrain_client.methods import Method, Request, Response


class AsyncRpcs:
    """The contract as it stands. Each takes its request message, or the request's fields as
    keywords (nested messages as dicts, enums by name), and ``timeout`` in seconds; each returns
    the response message and raises a ``MultigrainClientError``.

    Retries are made where they are harmless; streams are not taken up again when they break
    (``stream_events`` and ``embed_stream`` do that).
    """

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def _unary(
        self,
        method: Method[Request, Response],
        request: Request | None,
        timeout: float | None,
        fields: dict[str, Any],
    ) -> Response:
        message = build(method.request, request, fields)
        return await self._transport.unary(method, message, timeout)

    async def StartTraining(
        self,
        request: training_pb2.StartTrainingRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> job_pb2.Job:
        return await self._unary(methods.START_TRAINING, request, timeout, fields)

    async def StartEvaluation(
        self,
        request: evaluation_pb2.StartEvaluationRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> job_pb2.Job:
        return await self._unary(methods.START_EVALUATION, request, timeout, fields)

    async def StartExport(
        self,
        request: export_pb2.StartExportRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> job_pb2.Job:
        return await self._unary(methods.START_EXPORT, request, timeout, fields)

    async def GetJob(
        self,
        request: job_pb2.GetJobRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> job_pb2.Job:
        return await self._unary(methods.GET_JOB, request, timeout, fields)

    async def ListJobs(
        self,
        request: job_pb2.ListJobsRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> job_pb2.ListJobsResponse:
        return await self._unary(methods.LIST_JOBS, request, timeout, fields)

    async def CancelJob(
        self,
        request: job_pb2.CancelJobRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> job_pb2.Job:
        return await self._unary(methods.CANCEL_JOB, request, timeout, fields)

    async def ResumeJob(
        self,
        request: job_pb2.ResumeJobRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> job_pb2.Job:
        return await self._unary(methods.RESUME_JOB, request, timeout, fields)

    async def DeleteJob(
        self,
        request: job_pb2.DeleteJobRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> job_pb2.DeleteJobResponse:
        return await self._unary(methods.DELETE_JOB, request, timeout, fields)

    async def ListModels(
        self,
        request: model_pb2.ListModelsRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> model_pb2.ListModelsResponse:
        return await self._unary(methods.LIST_MODELS, request, timeout, fields)

    async def GetModel(
        self,
        request: model_pb2.GetModelRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> model_pb2.Model:
        return await self._unary(methods.GET_MODEL, request, timeout, fields)

    async def LoadModel(
        self,
        request: model_pb2.LoadModelRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> model_pb2.Model:
        return await self._unary(methods.LOAD_MODEL, request, timeout, fields)

    async def UnloadModel(
        self,
        request: model_pb2.UnloadModelRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> model_pb2.Model:
        return await self._unary(methods.UNLOAD_MODEL, request, timeout, fields)

    async def SetAlias(
        self,
        request: model_pb2.SetAliasRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> model_pb2.SetAliasResponse:
        return await self._unary(methods.SET_ALIAS, request, timeout, fields)

    async def DeleteModel(
        self,
        request: model_pb2.DeleteModelRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> model_pb2.DeleteModelResponse:
        return await self._unary(methods.DELETE_MODEL, request, timeout, fields)

    async def Embed(
        self,
        request: embedding_pb2.EmbedRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> embedding_pb2.EmbedResponse:
        return await self._unary(methods.EMBED, request, timeout, fields)

    async def Classify(
        self,
        request: embedding_pb2.ClassifyRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> embedding_pb2.ClassifyResponse:
        return await self._unary(methods.CLASSIFY, request, timeout, fields)

    def StreamEvents(
        self,
        request: job_pb2.StreamEventsRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> AsyncIterator[job_pb2.JobEvent]:
        message = build(job_pb2.StreamEventsRequest, request, fields)
        return self._transport.stream(methods.STREAM_EVENTS, message, timeout)

    def StreamEventBatches(
        self,
        request: job_pb2.StreamEventsRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> AsyncIterator[job_pb2.JobEventBatch]:
        message = build(job_pb2.StreamEventsRequest, request, fields)
        return self._transport.stream(methods.STREAM_EVENT_BATCHES, message, timeout)

    def DownloadModel(
        self,
        request: model_pb2.DownloadModelRequest | None = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> AsyncIterator[model_pb2.DownloadModelResponse]:
        message = build(model_pb2.DownloadModelRequest, request, fields)
        return self._transport.stream(methods.DOWNLOAD_MODEL, message, timeout)

    async def ImportModel(
        self,
        requests: AsyncIterator[model_pb2.ImportModelRequest],
        *,
        timeout: float | None = None,
    ) -> model_pb2.Model:
        return await self._transport.upload(methods.IMPORT_MODEL, requests, timeout)

    def EmbedStream(
        self,
        requests: AsyncIterator[embedding_pb2.EmbedRequest],
        *,
        timeout: float | None = None,
    ) -> AsyncIterator[embedding_pb2.EmbedResponse]:
        return self._transport.exchange(methods.EMBED_STREAM, requests, timeout)
