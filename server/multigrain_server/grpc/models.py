"""ModelService: lists, loads, imports and deletes models."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from multigrain.bundle.manifest import Head
from multigrain.errors import MultigrainError
from multigrain.v1 import model_pb2, model_pb2_grpc
from multigrain_server.convert.events import timestamp
from multigrain_server.models.archive import BundleImport
from multigrain_server.models.catalog import ModelPage, ModelView
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
        return _page_message(page)

    async def GetModel(
        self, request: model_pb2.GetModelRequest, context: Context
    ) -> model_pb2.Model:
        return _model_message(self._manager.catalog.view(request.model))

    async def LoadModel(
        self, request: model_pb2.LoadModelRequest, context: Context
    ) -> model_pb2.Model:
        view = await self._manager.load(
            request.model, request.runtime, make_default=request.make_default
        )
        return _model_message(view)

    async def UnloadModel(
        self, request: model_pb2.UnloadModelRequest, context: Context
    ) -> model_pb2.Model:
        return _model_message(await self._manager.unload(request.model))

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
            return _model_message(await incoming.finish())
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


def _model_message(view: ModelView) -> model_pb2.Model:
    """Everything that the daemon knows about a model version."""
    manifest = view.entry.manifest
    head = manifest.heads[0]
    return model_pb2.Model(
        name=manifest.name,
        version=manifest.version,
        state=model_pb2.ModelState.Value(f"MODEL_STATE_{view.state.name}"),
        state_message=view.message,
        aliases=view.aliases,
        trunk=manifest.model.trunk,
        embedding_size=manifest.embedding_size,
        classes=manifest.classes,
        labels=manifest.labels,
        resolution=head.resolution,
        gem_p=head.gem_p,
        files={name: entry.bytes for name, entry in manifest.files.items()},
        metrics={name: value for name, value in manifest.metrics.items() if math.isfinite(value)},
        source_job_id=manifest.source.job_id,
        source_step=manifest.source.step,
        create_time=_timestamp(manifest.create_time),
        runtime=view.runtime,
        max_batch_size=view.max_batch,
        load_seconds=view.load_seconds,
        engine_restarts=view.restarts,
        resolutions=[_resolution(head) for head in manifest.heads],
    )


def _page_message(page: ModelPage) -> model_pb2.ListModelsResponse:
    return model_pb2.ListModelsResponse(
        models=[_model_message(view) for view in page.models],
        next_page_token=page.next_token,
        aliases=page.aliases,
        default_model=page.default_model,
    )


def _resolution(head: Head) -> model_pb2.ModelResolution:
    message = model_pb2.ModelResolution(resolution=head.resolution, gem_p=head.gem_p)
    if head.whitening is not None:
        message.whitened_size = head.whitening.size
        message.whitening_images = head.whitening.images
    return message


def _timestamp(text: str) -> Timestamp | None:
    """None if the bundle has no creation time, or one that is not RFC 3339."""
    try:
        return timestamp(text)
    except ValueError:
        return None
