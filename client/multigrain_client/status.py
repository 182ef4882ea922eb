"""From a failed RPC to an error of this package."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from multigrain_client.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FieldViolation,
    Forbidden,
    InvalidRequest,
    MultigrainClientError,
    NotFound,
    Overloaded,
    ServerError,
    Unauthenticated,
    Unavailable,
    Unsupported,
    WrongState,
)

DOMAIN = "multigrain"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
REQUEST_ID_KEY = "x-request-id"

_BY_CODE: dict[grpc.StatusCode, type[MultigrainClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
}


def from_rpc(error: grpc.RpcError, method: str, target: str) -> MultigrainClientError:
    """The error of a failed call.

    Args:
        error: of ``grpc`` or ``grpc.aio``; both tell code, details and trailing metadata.
        method: name of the RPC.
        target: the address called, for the message of a failed connection.
    """
    # Every RpcError that a call raises is also a Call; grpc's types do not say so.
    code: grpc.StatusCode = error.code()
    message: str = error.details() or ""
    pairs: Iterable[Any] = error.trailing_metadata() or ()
    trailing: dict[str, str | bytes] = dict(pairs)

    status = status_pb2.Status()
    raw = trailing.get(DETAILS_KEY)
    if isinstance(raw, bytes):
        try:
            status.ParseFromString(raw)
        except DecodeError:
            # A proxy may have mangled the details; the plain status is still good.
            status.Clear()

    kind = ""
    request_id = _text(trailing.get(REQUEST_ID_KEY))
    violations: list[FieldViolation] = []
    retry_after: float | None = None
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    request_info = error_details_pb2.RequestInfo()
    for detail in status.details:
        if detail.Unpack(info):
            if info.domain == DOMAIN:
                kind = info.reason.removeprefix("ERROR_KIND_")
                request_id = request_id or info.metadata.get("request_id", "")
        elif detail.Unpack(bad_request):
            violations += [
                FieldViolation(violation.field, violation.description)
                for violation in bad_request.field_violations
            ]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif detail.Unpack(request_info):
            request_id = request_info.request_id or request_id
    if retry_after is None:
        retry_after = _pushback(trailing.get(PUSHBACK_KEY))

    error_type = _BY_CODE.get(code, ServerError)
    return error_type(
        _sentence(code, message, kind, method, target),
        kind=kind,
        code=code,
        method=method,
        violations=tuple(violations),
        retry_after=retry_after,
        request_id=request_id,
    )


def _sentence(code: grpc.StatusCode, message: str, kind: str, method: str, target: str) -> str:
    if kind:
        return message or f"{method} failed with {kind}"
    # Without ErrorInfo it is gRPC that speaks, and its messages need a word of explanation.
    if code is grpc.StatusCode.UNAVAILABLE:
        why = message or "no answer"
        return f"cannot reach the server at {target}: {why}; {_hint(why)}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{method}: no answer from {target} before the time-out"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"{method}: the server at {target} does not know this call: {message}"
    return f"{method} failed with {code.name}: {message}" if message else f"{method}: {code.name}"


def _hint(why: str) -> str:
    """What to look at first, from the words of gRPC."""
    if "http1" in why:
        return "an HTTP server answers there: give the gRPC address, not that of the status page"
    if "handshake" in why.lower() or "certificate" in why.lower():
        return "does the server use TLS, and are its name and authority those that you trust?"
    if "Socket closed" in why or "reset" in why:
        return "does the server use TLS, and this client not?"
    return "is multigrain-server running there?"


def _text(value: str | bytes | None) -> str:
    return value if isinstance(value, str) else ""


def _pushback(value: str | bytes | None) -> float | None:
    """gRPC's own retry delay (gRFC A6), in milliseconds; a negative one means: never."""
    try:
        milliseconds = int(_text(value))
    except ValueError:
        return None
    return milliseconds / 1000 if milliseconds >= 0 else None
