"""Errors of the server as exceptions of the client."""

from __future__ import annotations

import grpc
import pytest

from multigrain_client import InvalidRequest, NotFound, ServerError, WrongState
from tests.client.faults import Fault


def test_errors_have_kind_violations_and_request_id(client, state):
    state.faults["StartTraining"].append(
        Fault(
            grpc.StatusCode.INVALID_ARGUMENT,
            "2 fields are wrong",
            "INVALID_FIELD",
            fields=(("spec.schedule.epochs", "must be >= 1"), ("spec.seed", "must be >= 0")),
            request_id="req-7",
        )
    )
    with pytest.raises(InvalidRequest) as info:
        client.start_training(preset="digits-demo")
    error = info.value
    assert (error.kind, error.request_id, error.method) == (
        "INVALID_FIELD",
        "req-7",
        "StartTraining",
    )
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(error) == (
        "2 fields are wrong; spec.schedule.epochs: must be >= 1; spec.seed: must be >= 0"
    )


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", NotFound),
        (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE", WrongState),
        (grpc.StatusCode.INTERNAL, "INTERNAL", ServerError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE", TimeoutError),
    ],
)
def test_each_status_has_its_own_exception(client, state, code, kind, expected):
    state.faults["GetJob"].append(Fault(code, "words of the server", kind))
    with pytest.raises(expected, match=r"^words of the server$"):
        client.job("job-1")
