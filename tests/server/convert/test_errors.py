"""Errors as gRPC status with details."""

from __future__ import annotations

import base64
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from multigrain.errors import ErrorKind, FieldViolation, MultigrainError
from multigrain.v1 import common_pb2
from multigrain_server.convert.errors import STATUS_OF, WireError, wire_error


def _details(wire: WireError) -> dict[str, bytes]:
    raw = next(value for key, value in wire.trailing_metadata if key == "grpc-status-details-bin")
    assert isinstance(raw, bytes)
    status = status_pb2.Status.FromString(raw)
    assert (status.code, status.message) == (wire.code.value[0], wire.details)
    return {detail.type_url.rpartition(".")[2]: detail.value for detail in status.details}


def test_every_kind_of_error_has_a_status_other_than_ok() -> None:
    assert set(STATUS_OF) == set(ErrorKind)
    assert grpc.StatusCode.OK not in STATUS_OF.values()
    assert grpc.StatusCode.UNKNOWN not in STATUS_OF.values()


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("INVALID_FIELD", "INVALID_ARGUMENT"),
        ("PATH_NOT_ALLOWED", "PERMISSION_DENIED"),
        ("OVERLOADED", "RESOURCE_EXHAUSTED"),
        ("STORAGE", "RESOURCE_EXHAUSTED"),
        ("UNAVAILABLE", "UNAVAILABLE"),
        ("DEADLINE", "DEADLINE_EXCEEDED"),
        ("NOT_FOUND", "NOT_FOUND"),
        ("WRONG_STATE", "FAILED_PRECONDITION"),
        ("CHECKPOINT", "FAILED_PRECONDITION"),
        ("UNAUTHENTICATED", "UNAUTHENTICATED"),
        ("FORBIDDEN", "PERMISSION_DENIED"),
    ],
)
def test_documented_statuses(kind: str, code: str) -> None:
    assert STATUS_OF[ErrorKind[kind]] is grpc.StatusCode[code]


def test_kinds_match_the_contract() -> None:
    contract = {
        name.removeprefix("ERROR_KIND_"): number for name, number in common_pb2.ErrorKind.items()
    }
    del contract["UNSPECIFIED"]
    assert contract == {kind.name: kind.value for kind in ErrorKind}


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_every_kind_is_sent_with_its_name(kind: ErrorKind) -> None:
    wire = wire_error(MultigrainError(kind, "what and why"), "req-1")
    info = error_details_pb2.ErrorInfo.FromString(_details(wire)["ErrorInfo"])
    assert (info.reason, info.domain) == (kind.name, "multigrain")
    assert info.metadata["request_id"] == "req-1"
    assert wire.details == "what and why"


def test_invalid_fields_are_named() -> None:
    violations = (FieldViolation("spec.a", "too small"), FieldViolation("spec.b", "unknown"))
    wire = wire_error(MultigrainError(ErrorKind.INVALID_FIELD, "m", violations=violations), "r")
    bad = error_details_pb2.BadRequest.FromString(_details(wire)["BadRequest"])
    named = [(violation.field, violation.description) for violation in bad.field_violations]
    assert named == [("spec.a", "too small"), ("spec.b", "unknown")]


def test_a_retry_delay_is_sent_as_detail_and_as_trailer() -> None:
    wire = wire_error(MultigrainError(ErrorKind.OVERLOADED, "full", retry_after=1.5), "r")
    retry = error_details_pb2.RetryInfo.FromString(_details(wire)["RetryInfo"])
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert ("grpc-retry-pushback-ms", "1500") in wire.trailing_metadata


def test_a_long_message_is_shortened_to_fit_the_trailers() -> None:
    violations = tuple(FieldViolation(f"spec.f{i}", "\u00e9" * 1000) for i in range(1000))
    error = MultigrainError(
        ErrorKind.INVALID_FIELD, "spec: " + "\u00e9" * 9000, violations=violations
    )
    wire = wire_error(error, "r" * 128)
    raw = dict(wire.trailing_metadata)["grpc-status-details-bin"]
    assert len(quote(wire.details)) + len(base64.b64encode(bytes(raw))) < 7500  # type: ignore[arg-type]
    bad = error_details_pb2.BadRequest.FromString(_details(wire)["BadRequest"])
    assert bad.field_violations[0].field == "spec.f0"
    assert wire.details.startswith("spec: \u00e9")
    assert wire.details.endswith("...")


def test_a_file_name_that_is_not_utf_8_can_be_sent() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    wire = wire_error(MultigrainError(ErrorKind.DATASET, f"unknown: {name}"), "r")
    assert wire.details == "unknown: caf\\udce9"
