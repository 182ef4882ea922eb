"""ModelService: lists, loads, imports and deletes models."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from multigrain.errors import MultigrainError
from multigrain.v1 import model_pb2, model_pb2_grpc
from multigrain_server.convert import models as convert
from multigrain_server.models.archive import BundleImport
from multigrain_server.models.manager import ModelManager

# ruff: noqa: N802 - the methods have the names of the contract


ImportContext = grpc.aio.ServicerContext[model_pb2.ImportModelRequest, model_pb2.Model]
DownloadContext = grpc.aio.ServicerContext[
    model_pb2.DownloadModelRequest, model_pb2.DownloadModelResponse
]
Context = grpc.aio.ServicerContext[object, object]


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Raises MultigrainError; the server's interceptor makes a status of it."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: Context
    ) -> model_pb2.ListModelsResponse:
        page = self._manager.catalog.page(
            request.name,
            loaded_only=request.loaded_only,
            size=request.page_size,
            token=request.page_token,
        )
        return convert.page_message(page)

    async def GetModel(
        self, request: model_pb2.GetModelRequest, context: Context
    ) -> model_pb2.Model:
        return convert.model_message(self._manager.catalog.view(request.model))

    async def LoadModel(
        self, request: model_pb2.LoadModelRequest, context: Context
    ) -> model_pb2.Model:
        view = await self._manager.load(
            request.model, request.runtime, make_default=request.make_default
        )
        return convert.model_message(view)

    async def UnloadModel(
        self, request: model_pb2.UnloadModelRequest, context: Context
    ) -> model_pb2.Model:
        return convert.model_message(await self._manager.unload(request.model))

    async def SetAlias(
        self, request: model_pb2.SetAliasRequest, context: Context
    ) -> model_pb2.SetAliasResponse:
        target = self._manager.set_alias(request.alias, request.model)
        return model_pb2.SetAliasResponse(alias=request.alias, model=target)

    async def DeleteModel(
        self, request: model_pb2.DeleteModelRequest, context: Context
    ) -> model_pb2.DeleteModelResponse:
        await self._manager.delete(request.model)
        return model_pb2.DeleteModelResponse()

    async def ImportModel(
        self,
        request_iterator: AsyncIterator[model_pb2.ImportModelRequest],
        context: ImportContext,
    ) -> model_pb2.Model:
        incoming: BundleImport | None = None
        try:
            async for message in request_iterator:
                match message.WhichOneof("part"):
                    case "start" if incoming is None:
                        start = message.start
                        incoming = self._manager.import_bundle(
                            start.name, start.version, start.sha256
                        )
                    case "chunk" if incoming is not None:
                        await incoming.write(message.chunk)
                    case "start":
                        raise MultigrainError.field("start", "may come only once, as the first")
                    case _:
                        raise MultigrainError.field(
                            "start", "must be the first message, and chunks must follow it"
                        )
            if incoming is None:
                raise MultigrainError.field("start", "is missing: the stream was empty")
            return convert.model_message(await incoming.finish())
        finally:
            if incoming is not None:
                await incoming.close()

    async def DownloadModel(
        self, request: model_pb2.DownloadModelRequest, context: DownloadContext
    ) -> AsyncIterator[model_pb2.DownloadModelResponse]:
        async with self._manager.export_bundle(request.model) as archive:
            first = True
            async for chunk in archive.chunks():
                yield model_pb2.DownloadModelResponse(
                    chunk=chunk, total_bytes=archive.size if first else 0
                )
                first = False
            yield model_pb2.DownloadModelResponse(
                sha256=archive.sha256, total_bytes=archive.size if first else 0
            )
