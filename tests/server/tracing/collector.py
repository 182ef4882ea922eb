"""A collector of spans on loopback, as an OTLP exporter sees it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(TraceServiceServicer):
    """Keeps every span it is sent."""

    def __enter__(self) -> Self:
        self._spans: list[Span] = []
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.stop(None).wait()

    def Export(  # noqa: N802 - the contract's name
        self, request: ExportTraceServiceRequest, context: Any
    ) -> ExportTraceServiceResponse:
        with self._lock:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self._spans.extend(scope.spans)
        return ExportTraceServiceResponse()

    def named(self, name: str) -> list[Span]:
        """Those received so far."""
        with self._lock:
            return [span for span in self._spans if span.name == name]

    def wait_for(self, name: str) -> Span:
        """The first one of a name, once it has come."""
        deadline = time.monotonic() + 60
        while not (found := self.named(name)):
            assert time.monotonic() < deadline, [span.name for span in self._spans]
            time.sleep(0.02)
        return found[0]
