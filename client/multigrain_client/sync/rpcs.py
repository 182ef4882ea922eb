# Generated from aio/rpcs.py by `make sync-client`: edit that file instead.
"""Every RPC of the contract under its own name."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, Generic

from multigrain_client import methods
from multigrain_client.json_format import build
from multigrain_client.methods import Method, Request, Response
from multigrain_client.sync.transport import Transport


class _Rpc(Generic[Request, Response]):
    def __init__(self, transport: Transport, method: Method[Request, Response]) -> None:
        self.method = method
        self._transport = transport


class Unary(_Rpc[Request, Response]):
    """One request, one response."""

    def __call__(
        self, request: Request | None = None, *, timeout: float | None = None, **fields: Any
    ) -> Response:
        message = build(self.method.request, request, fields)
        return self._transport.unary(self.method, message, timeout)


class Stream(_Rpc[Request, Response]):
    """One request, a stream of responses."""

    def __call__(
        self, request: Request | None = None, *, timeout: float | None = None, **fields: Any
    ) -> Generator[Response, None]:
        message = build(self.method.request, request, fields)
        return self._transport.stream(self.method, message, timeout)


class Upload(_Rpc[Request, Response]):
    """A stream of requests, one response."""

    def __call__(self, requests: Iterable[Request], *, timeout: float | None = None) -> Response:
        return self._transport.upload(self.method, requests, timeout)


class Exchange(_Rpc[Request, Response]):
    """A stream of requests, a stream of responses."""

    def __call__(
        self, requests: Iterable[Request], *, timeout: float | None = None
    ) -> Generator[Response, None]:
        return self._transport.exchange(self.method, requests, timeout)


class Rpcs:
    """The RPCs of the contract. Each takes its request message, or the request's fields as
    keywords (nested messages as dicts, enums by name), and ``timeout`` in seconds; it returns the
    response message and raises a ``MultigrainClientError``.

    Unary calls are retried if that is safe. Broken streams are not reconnected; ``stream_events``
    and ``embed_stream`` do that.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.StartTraining = Unary(transport, methods.START_TRAINING)
        self.InspectDataset = Unary(transport, methods.INSPECT_DATASET)
        self.StartEvaluation = Unary(transport, methods.START_EVALUATION)
        self.StartExport = Unary(transport, methods.START_EXPORT)
        self.GetJob = Unary(transport, methods.GET_JOB)
        self.ListJobs = Unary(transport, methods.LIST_JOBS)
        self.CancelJob = Unary(transport, methods.CANCEL_JOB)
        self.ResumeJob = Unary(transport, methods.RESUME_JOB)
        self.DeleteJob = Unary(transport, methods.DELETE_JOB)
        self.StreamEvents = Stream(transport, methods.STREAM_EVENTS)
        self.ListArtifacts = Unary(transport, methods.LIST_ARTIFACTS)
        self.GetArtifact = Stream(transport, methods.GET_ARTIFACT)
        self.ListModels = Unary(transport, methods.LIST_MODELS)
        self.GetModel = Unary(transport, methods.GET_MODEL)
        self.LoadModel = Unary(transport, methods.LOAD_MODEL)
        self.UnloadModel = Unary(transport, methods.UNLOAD_MODEL)
        self.SetAlias = Unary(transport, methods.SET_ALIAS)
        self.DeleteModel = Unary(transport, methods.DELETE_MODEL)
        self.ImportModel = Upload(transport, methods.IMPORT_MODEL)
        self.DownloadModel = Stream(transport, methods.DOWNLOAD_MODEL)
        self.Embed = Unary(transport, methods.EMBED)
        self.Classify = Unary(transport, methods.CLASSIFY)
        self.EmbedStream = Exchange(transport, methods.EMBED_STREAM)
        self.CreateIndex = Unary(transport, methods.CREATE_INDEX)
        self.GetIndex = Unary(transport, methods.GET_INDEX)
        self.ListIndexes = Unary(transport, methods.LIST_INDEXES)
        self.DeleteIndex = Unary(transport, methods.DELETE_INDEX)
        self.SetIndexAlias = Unary(transport, methods.SET_INDEX_ALIAS)
        self.AddItems = Unary(transport, methods.ADD_ITEMS)
        self.AddItemsStream = Exchange(transport, methods.ADD_ITEMS_STREAM)
        self.GetItems = Unary(transport, methods.GET_ITEMS)
        self.UpdateItems = Unary(transport, methods.UPDATE_ITEMS)
        self.DeleteItems = Unary(transport, methods.DELETE_ITEMS)
        self.Search = Unary(transport, methods.SEARCH)
        self.ScanItems = Stream(transport, methods.SCAN_ITEMS)
