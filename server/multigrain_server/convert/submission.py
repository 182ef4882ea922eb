"""What the three Start requests have in common."""

from __future__ import annotations

import hashlib

from multigrain.jobs.request import JobKind
from multigrain.spec.request import check_request
from multigrain.v1.evaluation_pb2 import StartEvaluationRequest
from multigrain.v1.export_pb2 import StartExportRequest
from multigrain.v1.training_pb2 import StartTrainingRequest
from multigrain_server.jobs.submission import Submission

StartRequest = StartTrainingRequest | StartEvaluationRequest | StartExportRequest


def submission(request: StartRequest, kind: JobKind) -> Submission:
    """The request's id, name and labels, and a hash of all of it.

    Raises:
        MultigrainError: INVALID_FIELD with every violation.
    """
    labels = dict(request.labels)
    check_request(request.request_id, request.name, labels)
    name = request.name
    if not name and isinstance(request, StartTrainingRequest):
        name = request.spec.preset
    body = kind.value.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return Submission(kind, hashlib.sha256(body).hexdigest(), request.request_id, name, labels)
