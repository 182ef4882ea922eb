"""ModelService: lists, loads, imports and deletes models."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from multigrain.bundle.manifest import Head, Int8Entry, VectorLoss
from multigrain.errors import MultigrainError
from multigrain.text import printable
from multigrain.v1 import model_pb2, model_pb2_grpc
from multigrain_server.access.client import origin
from multigrain_server.convert.events import timestamp
from multigrain_server.models.archive import BundleImport
from multigrain_server.models.catalog import ModelPage, ModelView
from multigrain_server.models.manager import ModelManager
from multigrain_server.models.registry import RefusedBundle

#: Class names in one answer of ListModels; GetModel sends all those of its model.
MAX_LISTED_LABELS = 20_000
_MAX_REASON = 1000

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
        refused = self._manager.catalog.refused(request.model) if request.model else None
        if refused is not None:
            return _refused_message(refused)
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
        with self._manager.transfers.enter(origin.get().client):
            return await self._import(request_iterator)

    async def _import(
        self, requests: AsyncIterator[model_pb2.ImportModelRequest]
    ) -> model_pb2.Model:
        incoming: BundleImport | None = None
        try:
            while message := await self._next(requests):
                match message.WhichOneof("part"):
                    case "start" if incoming is None:
                        start = message.start
                        incoming = self._manager.import_bundle(
                            start.name, start.version, start.sha256, _model_message
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

    async def _next(
        self, requests: AsyncIterator[model_pb2.ImportModelRequest]
    ) -> model_pb2.ImportModelRequest | None:
        return await self._manager.transfers.progress(anext(requests, None), "sent no data")

    # Writes to the context, so that a write that takes too long can be given a time limit.
    async def DownloadModel(  # type: ignore[override]
        self, request: model_pb2.DownloadModelRequest, context: DownloadContext
    ) -> None:
        transfers = self._manager.transfers
        with transfers.enter(origin.get().client):
            async with self._manager.export_bundle(request.model) as archive:
                message = model_pb2.DownloadModelResponse(total_bytes=archive.size)
                async for chunk in archive.chunks():
                    message.chunk = chunk
                    await transfers.progress(context.write(message), "took no data")
                    message = model_pb2.DownloadModelResponse()
                message = model_pb2.DownloadModelResponse(sha256=archive.sha256)
                await transfers.progress(context.write(message), "took no data")


def _model_message(view: ModelView, *, labels: bool = True) -> model_pb2.Model:
    """Everything that the daemon knows about a model version, with or without its labels."""
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
        labels=manifest.labels if labels else (),
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
        runtime_name=view.runtime_name,
        runtime_speeds=view.runtime_speeds,
    )


def _refused_message(refused: RefusedBundle) -> model_pb2.Model:
    """A folder in the place of a bundle that cannot be used, and why."""
    return model_pb2.Model(
        name=refused.version.name,
        version=refused.version.version,
        state=model_pb2.MODEL_STATE_FAILED,
        state_message=printable(f"refused: {refused.reason}"[:_MAX_REASON]),
    )


def _page_message(page: ModelPage) -> model_pb2.ListModelsResponse:
    left = MAX_LISTED_LABELS
    messages = [_refused_message(refused) for refused in page.refused]
    for view in page.models:
        count = len(view.entry.manifest.labels)
        messages.append(_model_message(view, labels=count <= left))
        left -= count if count <= left else 0
    return model_pb2.ListModelsResponse(
        models=sorted(messages, key=lambda message: (message.name, message.version)),
        next_page_token=page.next_token,
        aliases=page.aliases,
        default_model=page.default_model,
    )


def _resolution(head: Head) -> model_pb2.ModelResolution:
    message = model_pb2.ModelResolution(
        resolution=head.resolution, gem_p=head.gem_p, no_int8=head.no_int8
    )
    if head.int8 is not None:
        message.int8.CopyFrom(_int8(head.int8))
    if head.whitening is not None:
        message.whitened_size = head.whitening.size
        message.whitening_images = head.whitening.images
    return message


def _int8(entry: Int8Entry) -> model_pb2.Int8Graph:
    return model_pb2.Int8Graph(
        calibration_images=entry.calibration_images,
        images=entry.images,
        held_out=entry.held_out,
        vectors=_loss(entry),
        whitened=_loss(entry.whitened) if entry.whitened is not None else None,
        same_top1=entry.same_top1,
        f32_top1=entry.f32.top1 if entry.f32 is not None else None,
        int8_top1=entry.int8.top1 if entry.int8 is not None else None,
    )


def _loss(loss: VectorLoss) -> model_pb2.VectorLoss:
    before, after = loss.f32_search, loss.int8_search
    return model_pb2.VectorLoss(
        cosine_mean=loss.cosine_mean,
        cosine_p1=loss.cosine_p1,
        cosine_min=loss.cosine_min,
        f32_copy_map=before.copy_map if before is not None else None,
        int8_copy_map=after.copy_map if after is not None else None,
        f32_object_map=before.object_map if before is not None else None,
        int8_object_map=after.object_map if after is not None else None,
    )


def _timestamp(text: str) -> Timestamp | None:
    """None if the bundle has no creation time, or one that is not RFC 3339."""
    try:
        return timestamp(text)
    except ValueError:
        return None
