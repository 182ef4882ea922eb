"""gRPC status of each kind of error, and its encoding with google.rpc details."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from multigrain.errors import ErrorKind, MultigrainError

DOMAIN = "multigrain"

# Clients accept 8 KiB of trailers by default, and report RESOURCE_EXHAUSTED for more. The trailers
# contain the message twice, once percent-encoded, and the details base64-encoded.
_MESSAGE_BYTES = 1500
_VIOLATION_BYTES = 300
_VIOLATIONS_BYTES = 2500

STATUS_OF: dict[ErrorKind, grpc.StatusCode] = {
    ErrorKind.INVALID_FIELD: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.PATH_NOT_ALLOWED: grpc.StatusCode.PERMISSION_DENIED,
    ErrorKind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorKind.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    ErrorKind.WRONG_STATE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorKind.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorKind.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorKind.CANCELLED: grpc.StatusCode.CANCELLED,
    ErrorKind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorKind.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    ErrorKind.INTERNAL: grpc.StatusCode.INTERNAL,
    ErrorKind.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    ErrorKind.DATA_LOSS: grpc.StatusCode.DATA_LOSS,
    ErrorKind.IMAGE_UNREADABLE: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.IMAGE_FORMAT: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.IMAGE_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.NOT_FINITE: grpc.StatusCode.INTERNAL,
    ErrorKind.IMAGE_HARMFUL: grpc.StatusCode.INVALID_ARGUMENT,
    # At submission: the dataset is an argument of the request.
    ErrorKind.DATASET: grpc.StatusCode.INVALID_ARGUMENT,
    # Of failed jobs; a status only for calls that wait for the job.
    ErrorKind.WORKER_DIED: grpc.StatusCode.INTERNAL,
    ErrorKind.CLUSTER_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorKind.DIVERGED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorKind.CHECKPOINT: grpc.StatusCode.FAILED_PRECONDITION,
    # gRPC's own description of the code: "perhaps the entire file system is out of space".
    ErrorKind.STORAGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.RUNNER_LOST: grpc.StatusCode.INTERNAL,
    ErrorKind.STALLED: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True)
class WireError:
    """Arguments of ``ServicerContext.abort``."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def wire_error(error: MultigrainError, request_id: str) -> WireError:
    """An error with google.rpc details: always ErrorInfo; BadRequest if fields are wrong;
    RetryInfo (and gRPC's pushback trailer) if a retry may succeed."""
    code = STATUS_OF[error.kind]
    text = _cut(error.message, _MESSAGE_BYTES)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.kind.name, domain=DOMAIN, metadata={"request_id": request_id}
        )
    ]
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad.field_violations.add(
                field=_cut(violation.field, _VIOLATION_BYTES),
                description=_cut(violation.message, _VIOLATION_BYTES),
            )
            if bad.ByteSize() > _VIOLATIONS_BYTES:
                del bad.field_violations[-1]
                break
        details.append(bad)
    extra: list[tuple[str, str | bytes]] = []
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        extra.append(("grpc-retry-pushback-ms", str(int(error.retry_after * 1000))))
    status = status_pb2.Status(code=code.value[0], message=text)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    sent = rpc_status.to_status(status)
    metadata = tuple((str(key), value) for key, value in sent.trailing_metadata or ())
    return WireError(code, text, (*metadata, *extra))


def _cut(text: str, size: int) -> str:
    """The start of a text, at most about ``size`` bytes long when percent-encoded.

    Unpaired surrogates (from file names that are not UTF-8) cannot be sent and are escaped.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    taken = 0
    for at, character in enumerate(text):
        plain = " " <= character <= "~" and character != "%"
        taken += 1 if plain else 3 * len(character.encode())
        if taken > size:
            return f"{text[:at]}..."
    return text


def internal_error(request_id: str) -> MultigrainError:
    """The error for an unexpected exception: details are only logged, with the request id."""
    return MultigrainError(ErrorKind.INTERNAL, f"internal error, request id {request_id}")
