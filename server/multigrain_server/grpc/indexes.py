"""IndexService: indexes of images, their items, and searches."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

import grpc

from multigrain.errors import MultigrainError
from multigrain.v1 import common_pb2, embedding_pb2, index_pb2, index_pb2_grpc
from multigrain_server.access.client import origin
from multigrain_server.asyncio_utils import cooperative
from multigrain_server.convert.errors import STATUS_OF
from multigrain_server.convert.indexes import (
    changes_of,
    effort_of,
    engine_of,
    fields_of,
    filter_of,
    hit_message,
    index_message,
    item_message,
    new_item,
    query_of,
)
from multigrain_server.grpc.interceptor import deadline_ns, log_request_id
from multigrain_server.indexes.service import Caller, IndexService

if TYPE_CHECKING:
    from multigrain_server.indexes.service import Vectors

# ruff: noqa: N802 - the methods have the names of the contract

Context = grpc.aio.ServicerContext[object, object]


class IndexServicer(index_pb2_grpc.IndexServiceServicer):
    """Raises MultigrainError; the server's interceptor makes a status of it."""

    def __init__(self, service: IndexService) -> None:
        self._service = service

    async def CreateIndex(
        self, request: index_pb2.CreateIndexRequest, context: Context
    ) -> index_pb2.Index:
        return index_message(
            await self._service.create(
                request.name,
                request.model,
                request.resolution,
                request.whiten,
                fields_of(request.fields),
                engine_of(request.engine),
            )
        )

    async def GetIndex(
        self, request: index_pb2.GetIndexRequest, context: Context
    ) -> index_pb2.Index:
        return index_message(await self._service.get(request.index))

    async def ListIndexes(
        self, request: index_pb2.ListIndexesRequest, context: Context
    ) -> index_pb2.ListIndexesResponse:
        views = await self._service.list_all()
        return index_pb2.ListIndexesResponse(indexes=map(index_message, views))

    async def DeleteIndex(
        self, request: index_pb2.DeleteIndexRequest, context: Context
    ) -> index_pb2.DeleteIndexResponse:
        await self._service.delete(request.index)
        return index_pb2.DeleteIndexResponse()

    async def SetIndexAlias(
        self, request: index_pb2.SetIndexAliasRequest, context: Context
    ) -> index_pb2.SetIndexAliasResponse:
        await self._service.set_alias(request.alias, request.index)
        return index_pb2.SetIndexAliasResponse()

    async def AddItems(
        self, request: index_pb2.AddItemsRequest, context: Context
    ) -> index_pb2.AddItemsResponse:
        return await self._add(request, _caller(context))

    async def AddItemsStream(
        self,
        request_iterator: AsyncIterator[index_pb2.AddItemsRequest],
        context: Context,
    ) -> AsyncIterator[index_pb2.AddItemsResponse]:
        async for request in request_iterator:
            yield await self._add(request, _caller(context))

    async def GetItems(
        self, request: index_pb2.GetItemsRequest, context: Context
    ) -> index_pb2.GetItemsResponse:
        await self._service.prepare()
        found, vectors = await self._service.items(request.index, request.ids, request.with_vectors)
        rows: Iterable[Vectors | None] = vectors if vectors is not None else [None] * len(found)
        return index_pb2.GetItemsResponse(items=map(item_message, found, rows))

    async def UpdateItems(
        self, request: index_pb2.UpdateItemsRequest, context: Context
    ) -> index_pb2.UpdateItemsResponse:
        changes = [changes_of(item, f"items[{n}]") for n, item in enumerate(request.items)]
        missing, version = await self._service.update(request.index, changes)
        return index_pb2.UpdateItemsResponse(missing_ids=missing, version=version)

    async def DeleteItems(
        self, request: index_pb2.DeleteItemsRequest, context: Context
    ) -> index_pb2.DeleteItemsResponse:
        if not request.HasField("filter"):
            raise MultigrainError.field(
                "filter", "is missing: an empty `all` chooses all items of the index"
            )
        deleted, version = await self._service.delete_items(
            request.index, filter_of(request.filter)
        )
        return index_pb2.DeleteItemsResponse(deleted=deleted, version=version)

    async def Search(
        self, request: index_pb2.SearchRequest, context: Context
    ) -> index_pb2.SearchResponse:
        log_request_id(request.request_id)
        start = time.monotonic_ns()
        await self._service.prepare()
        found = await self._service.search(
            request.index,
            [query_of(query, f"queries[{n}]") for n, query in enumerate(request.queries)],
            request.k,
            chosen=filter_of(request.filter) if request.HasField("filter") else None,
            min_similarity=request.min_similarity if request.HasField("min_similarity") else None,
            effort=effort_of(request.effort),
            with_vectors=request.with_vectors,
            caller=_caller(context),
        )
        times = embedding_pb2.Timings(total_ns=time.monotonic_ns() - start)
        if found.times is not None:
            times.decode_ns = found.times.decode
            times.queue_ns = found.times.queue
            times.compute_ns = found.times.compute
        response = index_pb2.SearchResponse(
            version=found.version, timings=times, request_id=request.request_id
        )
        async for result in cooperative(found.results):
            if isinstance(result, MultigrainError):
                response.results.add(status=_status(result))
            else:
                status = embedding_pb2.ItemStatus()
                response.results.add(status=status, hits=map(hit_message, result))
        return response

    async def ScanItems(
        self, request: index_pb2.ScanItemsRequest, context: Context
    ) -> AsyncIterator[index_pb2.ScanItemsResponse]:
        await self._service.prepare()
        chosen = filter_of(request.filter) if request.HasField("filter") else None
        first = True
        async for found, vectors, total in self._service.scan(
            request.index, chosen, request.with_vectors
        ):
            rows: Iterable[Vectors | None] = vectors if vectors is not None else [None] * len(found)
            message = index_pb2.ScanItemsResponse(items=map(item_message, found, rows))
            if first:
                message.total = total
            first = False
            yield message

    async def _add(
        self, request: index_pb2.AddItemsRequest, caller: Caller
    ) -> index_pb2.AddItemsResponse:
        log_request_id(request.request_id)
        await self._service.prepare()
        items = [new_item(item, f"items[{number}]") for number, item in enumerate(request.items)]
        errors, version = await self._service.add(request.index, items, request.model, caller)
        return index_pb2.AddItemsResponse(
            statuses=[_status(error) for error in errors],
            version=version,
            request_id=request.request_id,
        )


def _caller(context: Context) -> Caller:
    sender, received = origin.get(), time.monotonic_ns()
    return Caller(sender.client, sender.connection, deadline_ns(context, received), received)


def _status(error: MultigrainError | None) -> embedding_pb2.ItemStatus:
    if error is None:
        return embedding_pb2.ItemStatus()
    return embedding_pb2.ItemStatus(
        code=STATUS_OF[error.kind].value[0],
        kind=common_pb2.ErrorKind.Value(f"ERROR_KIND_{error.kind.name}"),
        message=error.message,
    )
