"""Failures of the fake server."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2


@dataclass(frozen=True)
class Fault:
    """One failure of one call; ``after`` messages of a stream are sent before it."""

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    message: str = "injected"
    kind: str = ""
    retry_after: float | None = None
    after: int = 0
    fields: tuple[tuple[str, str], ...] = ()
    request_id: str = ""


def abort(context: grpc.ServicerContext, fault: Fault) -> None:
    """Ends the call as the real server does: with rich details when it has a kind."""
    details: list[Any] = []
    if fault.kind:
        metadata = {"request_id": fault.request_id} if fault.request_id else {}
        details.append(
            error_details_pb2.ErrorInfo(reason=fault.kind, domain="multigrain", metadata=metadata)
        )
    if fault.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(int(fault.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if fault.fields:
        bad = error_details_pb2.BadRequest()
        for name, text in fault.fields:
            bad.field_violations.add(field=name, description=text)
        details.append(bad)
    if not details:
        context.abort(fault.code, fault.message)
    status = status_pb2.Status(code=fault.code.value[0], message=fault.message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    context.abort_with_status(
        SimpleNamespace(
            code=fault.code,
            details=fault.message,
            trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),),
        )
    )
