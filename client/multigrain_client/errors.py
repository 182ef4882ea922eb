"""Everything this package raises, one tree below ``MultigrainClientError``, and how a failed RPC
becomes one of these errors."""

# ruff: noqa: N818 - named after what happened, as users catch them: NotFound, JobFailed.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from multigrain.text import is_text, printable

if TYPE_CHECKING:
    from multigrain.v1.job_pb2 import Job
    from multigrain_client.proxy import Proxy


@dataclass(frozen=True)
class FieldViolation:
    """One invalid field: its path ("spec.schedule.epochs") and what is wrong with it."""

    field: str
    message: str


class MultigrainClientError(Exception):
    """Base class of all errors that the client raises. ``str(error)`` is one readable sentence.

    Attributes:
        message: what was wrong, where, and what to do about it.
        kind: name of a ``multigrain.v1.ErrorKind`` without its prefix ("NOT_FOUND"), or ""
            when the error comes from gRPC itself and not from the server.
        code: the gRPC status of the call; None if no call failed.
        method: name of the RPC ("StartTraining"), or "".
        violations: for INVALID_FIELD, every invalid field.
        retry_after: seconds to wait before a retry, if the server sent a delay.
        request_id: the id of this call in the server's log, or "".
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "",
        code: grpc.StatusCode | None = None,
        method: str = "",
        violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        # A name with bytes that are not UTF-8 would make printing the error another error.
        message = message if is_text(message) else printable(message)
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.code = code
        self.method = method
        self.violations = violations
        self.retry_after = retry_after
        self.request_id = request_id

    def __str__(self) -> str:
        known = self.message
        lines = [
            f"{violation.field}: {violation.message}"
            for violation in self.violations
            if violation.message not in known
        ]
        return "; ".join([known, *lines])


class InvalidRequest(MultigrainClientError, ValueError):
    """A field or argument is invalid. ``code`` is None when the client found out by itself."""


class NotFound(MultigrainClientError, LookupError):
    """There is no such job, model, version, checkpoint or alias."""


class AlreadyExists(MultigrainClientError):
    """The request id belongs to a different request, or the model version already exists."""


class WrongState(MultigrainClientError):
    """The state of the job or model does not allow this call."""


class Overloaded(MultigrainClientError):
    """The server is overloaded and the retries are used up; see ``retry_after``."""


class Unavailable(MultigrainClientError):
    """The server cannot be reached, is draining, or has no engine ready for the model."""


class DeadlineExceeded(MultigrainClientError, TimeoutError):
    """The deadline passed, or the server found that it cannot meet the deadline."""


class Cancelled(MultigrainClientError):
    """The call was cancelled."""


class Unauthenticated(MultigrainClientError):
    """The token is missing or invalid."""


class Forbidden(MultigrainClientError):
    """The path is outside the data roots, or the token's role does not allow the call."""


class ServerError(MultigrainClientError):
    """An internal error of the server; its log has the details under ``request_id``."""


class Unsupported(MultigrainClientError):
    """This server or device does not support the operation."""


class ClientClosed(MultigrainClientError, RuntimeError):
    """The client is closed: it was used after ``close`` or after its ``with`` block, or closed
    while a call was in flight. Create another client."""


class StreamGap(MultigrainClientError):
    """An event stream skipped a sequence number, even after reconnecting: a bug of the server."""


class MissingPackage(MultigrainClientError, ImportError):
    """An optional package is missing; the message names the extra to install."""


class JobFailed(MultigrainClientError):
    """The job that ``wait`` waited for did not succeed.

    Attributes:
        job: the final job; ``job.error`` has the exit code, signal, rank and the tail of the
            worker's log.
    """

    def __init__(self, message: str, job: Job, *, kind: str = "") -> None:
        super().__init__(message, kind=kind)
        self.job = job


class JobCancelled(JobFailed):
    """The job that ``wait`` waited for was cancelled."""


@dataclass(frozen=True)
class ImageError:
    """Why one image has no result.

    Attributes:
        index: position in the input, from 0.
        name: path of the image, or "image 3".
        kind: name of an ``ErrorKind`` without its prefix, e.g. "IMAGE_UNREADABLE".
        message: what is wrong with it.
    """

    index: int
    name: str
    kind: str
    message: str

    def __str__(self) -> str:
        return printable(f"{self.name}: {self.message}")


class ImagesFailed(MultigrainClientError):
    """Some images have no result; ``images`` lists all of them.

    Attributes:
        images: the failed images in input order.
        total: number of images in the call.
        SHOWN: the message names at most this many images.
    """

    SHOWN = 10

    def __init__(self, images: Sequence[ImageError], total: int) -> None:
        self.images = tuple(images)
        self.total = total
        shown = [str(image) for image in self.images[: self.SHOWN]]
        if len(self.images) > self.SHOWN:
            shown.append(f"and {len(self.images) - self.SHOWN} more")
        super().__init__(
            f"{len(self.images)} of {total} images failed: " + "; ".join(shown),
            kind=self.images[0].kind if self.images else "",
        )


def closed_before(method: str) -> str:
    """The message of a call of a closed client."""
    return (
        f"{method}: the client is closed, by close() or by the end of its `with` block; create "
        "another client, or close this one after its last call"
    )


def closed_during(method: str) -> str:
    """The message of a call that the client's ``close`` has canceled."""
    return f"{method}: the client was closed while the call was in flight"


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


def from_rpc(
    error: grpc.RpcError, method: str, target: str, proxy: Proxy | None = None
) -> MultigrainClientError:
    """The client error for a failed RPC.

    Args:
        error: from ``grpc`` or ``grpc.aio``; both have code, details and trailing metadata.
        method: name of the RPC.
        target: address of the server, for the message of a failed connection.
        proxy: the proxy on the way to it.
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
            # A proxy may have damaged the details; the plain status is still valid.
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
        _sentence(code, message, kind, method, target, proxy),
        kind=kind,
        code=code,
        method=method,
        violations=tuple(violations),
        retry_after=retry_after,
        request_id=request_id,
    )


def _sentence(
    code: grpc.StatusCode, message: str, kind: str, method: str, target: str, proxy: Proxy | None
) -> str:
    if kind:
        return message or f"{method} failed with {kind}"
    # Without ErrorInfo the status comes from gRPC itself, whose messages need an explanation, or
    # from a proxy.
    where = target + (proxy.route if proxy is not None else "")
    if code is grpc.StatusCode.UNAVAILABLE:
        why = message or "no answer"
        advice = _hint(why) + (f" {proxy.advice}" if proxy is not None else "")
        return f"cannot reach the server at {where}: {why}; {advice}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        late = f"{method}: deadline exceeded before {where} answered"
        return f"{late}. {proxy.advice}" if proxy is not None else late
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"{method}: the server at {where} does not have this RPC: {message}"
    failed = f"{method} failed with {code.name}: {message}" if message else f"{method}: {code.name}"
    return f"{failed} (from {where})" if proxy is not None and not proxy.unused else failed


def _hint(why: str) -> str:
    """What to check first, by gRPC's message."""
    if "http1" in why:
        return "an HTTP server answers there: use the gRPC address, not that of the status page"
    if "handshake" in why.lower() or "certificate" in why.lower():
        return "does the server use TLS, with the name and certificate authority that you expect?"
    if "Socket closed" in why or "reset" in why:
        return "does the server use TLS while this client does not, or need a client certificate?"
    return "is multigrain-server running there?"


def _text(value: str | bytes | None) -> str:
    return value if isinstance(value, str) else ""


def _pushback(value: str | bytes | None) -> float | None:
    """Seconds of gRPC's own retry delay (gRFC A6, milliseconds); negative means: do not retry."""
    try:
        milliseconds = int(_text(value))
    except ValueError:
        return None
    return milliseconds / 1000 if milliseconds >= 0 else None
