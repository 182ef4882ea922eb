"""Everything this package raises: one tree below ``MultigrainClientError``."""

# ruff: noqa: N818 - named after what happened, as users catch them: NotFound, JobFailed.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc

    from multigrain.v1.job_pb2 import Job


@dataclass(frozen=True)
class FieldViolation:
    """One wrong field: its path ("spec.schedule.epochs") and what is wrong with it."""

    field: str
    message: str


class MultigrainClientError(Exception):
    """Base of all errors of the client. ``str(error)`` is a sentence for people.

    Attributes:
        message: what was wrong, where, and what to do.
        kind: name of a ``multigrain.v1.ErrorKind`` without its prefix ("NOT_FOUND"), or ""
            when the error is the transport's and the server said nothing.
        code: the gRPC status of the call; None if no call was made or none failed.
        method: name of the RPC ("StartTraining"), or "".
        violations: for INVALID_FIELD, every wrong field.
        retry_after: seconds after which the server says a retry may succeed, if it said so.
        request_id: the id under which the server's log has this call, or "".
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
    """A field or argument is wrong. ``code`` is None when the client found it itself."""


class NotFound(MultigrainClientError, LookupError):
    """No such job, model, version, checkpoint or alias."""


class AlreadyExists(MultigrainClientError):
    """The request id was used for another request, or the version exists."""


class WrongState(MultigrainClientError):
    """The job or model is in a state that does not allow this."""


class Overloaded(MultigrainClientError):
    """The server is full; ``retry_after`` says when to come back. Retries are used up."""


class Unavailable(MultigrainClientError):
    """The server cannot be reached, is draining, or has no engine ready for the model."""


class DeadlineExceeded(MultigrainClientError, TimeoutError):
    """The time-out passed, or the server saw that it could not be met."""


class Cancelled(MultigrainClientError):
    """The call was cancelled."""


class Unauthenticated(MultigrainClientError):
    """No token, or a wrong one."""


class Forbidden(MultigrainClientError):
    """The path is outside the allowed roots, or the token's role does not allow the call."""


class ServerError(MultigrainClientError):
    """A defect of the server; its log has the details under ``request_id``."""


class Unsupported(MultigrainClientError):
    """This server or this device cannot do it."""


class StreamGap(MultigrainClientError):
    """An event stream skipped a sequence number, again and again. A defect of the server."""


class MissingPackage(MultigrainClientError, ImportError):
    """An optional package is needed for this; the message says which to install."""


class JobFailed(MultigrainClientError):
    """The job that was waited for has ended without success.

    Attributes:
        job: the job as the server reports it; ``job.error`` has exit code, signal, rank and
            the tail of the worker's log.
    """

    def __init__(self, message: str, job: Job, *, kind: str = "") -> None:
        super().__init__(message, kind=kind)
        self.job = job


class JobCancelled(JobFailed):
    """The job that was waited for was cancelled."""


@dataclass(frozen=True)
class ImageError:
    """One image that has no answer.

    Attributes:
        index: position in the caller's input, from 0.
        name: its path, or "image 3".
        kind: name of an ``ErrorKind`` without its prefix, e.g. "IMAGE_UNREADABLE".
        message: what is wrong with it.
    """

    index: int
    name: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


class ImagesFailed(MultigrainClientError):
    """Some images have no answer; ``images`` names every one of them.

    Attributes:
        images: the bad images in input order.
    """

    def __init__(self, images: Sequence[ImageError], total: int) -> None:
        self.images = tuple(images)
        self.total = total
        shown = [str(image) for image in self.images[:10]]
        if len(self.images) > 10:
            shown.append(f"and {len(self.images) - 10} more")
        super().__init__(
            f"{len(self.images)} of {total} images failed: " + "; ".join(shown),
            kind=self.images[0].kind if self.images else "",
        )
