"""The RPCs of the contract as data: path, message types, idempotency, default timeout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from multigrain.v1 import (
    embedding_pb2,
    evaluation_pb2,
    export_pb2,
    index_pb2,
    job_pb2,
    model_pb2,
    training_pb2,
)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

# Default timeout in seconds of calls that load or drain an engine or transfer a bundle.
SLOW = 900.0


def _always(request: Message) -> bool:
    return True


def _never(request: Message) -> bool:
    return False


def _with_request_id(request: Message) -> bool:
    """A Start... call is idempotent if it carries a request id."""
    return bool(getattr(request, "request_id", ""))


@dataclass(frozen=True)
class Method(Generic[Request, Response]):
    """One RPC.

    Attributes:
        service: full name of its service.
        name: its own name.
        request: class of the request message.
        response: class of the response message.
        idempotent: whether a given request may be sent twice.
        timeout: default in seconds; None = the client's default.
    """

    service: str
    name: str
    request: type[Request]
    response: type[Response]
    idempotent: Callable[[Message], bool]
    timeout: float | None = None

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


_JOBS = "multigrain.v1.JobService"
_MODELS = "multigrain.v1.ModelService"
_EMBEDDING = "multigrain.v1.EmbeddingService"
_INDEX = "multigrain.v1.IndexService"

START_TRAINING = Method(
    "multigrain.v1.TrainingService",
    "StartTraining",
    training_pb2.StartTrainingRequest,
    job_pb2.Job,
    _with_request_id,
)
INSPECT_DATASET = Method(
    "multigrain.v1.TrainingService",
    "InspectDataset",
    training_pb2.InspectDatasetRequest,
    training_pb2.InspectDatasetResponse,
    _always,
    SLOW,
)
START_EVALUATION = Method(
    "multigrain.v1.EvaluationService",
    "StartEvaluation",
    evaluation_pb2.StartEvaluationRequest,
    job_pb2.Job,
    _with_request_id,
)
START_EXPORT = Method(
    "multigrain.v1.ExportService",
    "StartExport",
    export_pb2.StartExportRequest,
    job_pb2.Job,
    _with_request_id,
)

GET_JOB = Method(_JOBS, "GetJob", job_pb2.GetJobRequest, job_pb2.Job, _always)
LIST_JOBS = Method(_JOBS, "ListJobs", job_pb2.ListJobsRequest, job_pb2.ListJobsResponse, _always)
CANCEL_JOB = Method(_JOBS, "CancelJob", job_pb2.CancelJobRequest, job_pb2.Job, _always)
# A repeated call would fail (the job already runs) or start an additional attempt.
RESUME_JOB = Method(_JOBS, "ResumeJob", job_pb2.ResumeJobRequest, job_pb2.Job, _never)
DELETE_JOB = Method(_JOBS, "DeleteJob", job_pb2.DeleteJobRequest, job_pb2.DeleteJobResponse, _never)
STREAM_EVENTS = Method(
    _JOBS, "StreamEvents", job_pb2.StreamEventsRequest, job_pb2.JobEventBatch, _always
)
LIST_ARTIFACTS = Method(
    _JOBS, "ListArtifacts", job_pb2.ListArtifactsRequest, job_pb2.ListArtifactsResponse, _always
)
GET_ARTIFACT = Method(
    _JOBS, "GetArtifact", job_pb2.GetArtifactRequest, job_pb2.GetArtifactResponse, _always, SLOW
)

LIST_MODELS = Method(
    _MODELS, "ListModels", model_pb2.ListModelsRequest, model_pb2.ListModelsResponse, _always
)
GET_MODEL = Method(_MODELS, "GetModel", model_pb2.GetModelRequest, model_pb2.Model, _always)
LOAD_MODEL = Method(
    _MODELS, "LoadModel", model_pb2.LoadModelRequest, model_pb2.Model, _always, SLOW
)
UNLOAD_MODEL = Method(
    _MODELS, "UnloadModel", model_pb2.UnloadModelRequest, model_pb2.Model, _never, SLOW
)
SET_ALIAS = Method(
    _MODELS, "SetAlias", model_pb2.SetAliasRequest, model_pb2.SetAliasResponse, _always
)
DELETE_MODEL = Method(
    _MODELS, "DeleteModel", model_pb2.DeleteModelRequest, model_pb2.DeleteModelResponse, _never
)
IMPORT_MODEL = Method(
    _MODELS, "ImportModel", model_pb2.ImportModelRequest, model_pb2.Model, _never, SLOW
)
DOWNLOAD_MODEL = Method(
    _MODELS,
    "DownloadModel",
    model_pb2.DownloadModelRequest,
    model_pb2.DownloadModelResponse,
    _always,
    SLOW,
)

EMBED = Method(
    _EMBEDDING, "Embed", embedding_pb2.EmbedRequest, embedding_pb2.EmbedResponse, _always
)
CLASSIFY = Method(
    _EMBEDDING, "Classify", embedding_pb2.ClassifyRequest, embedding_pb2.ClassifyResponse, _always
)
EMBED_STREAM = Method(
    _EMBEDDING, "EmbedStream", embedding_pb2.EmbedRequest, embedding_pb2.EmbedResponse, _always
)

CREATE_INDEX = Method(_INDEX, "CreateIndex", index_pb2.CreateIndexRequest, index_pb2.Index, _never)
GET_INDEX = Method(_INDEX, "GetIndex", index_pb2.GetIndexRequest, index_pb2.Index, _always)
LIST_INDEXES = Method(
    _INDEX, "ListIndexes", index_pb2.ListIndexesRequest, index_pb2.ListIndexesResponse, _always
)
DELETE_INDEX = Method(
    _INDEX, "DeleteIndex", index_pb2.DeleteIndexRequest, index_pb2.DeleteIndexResponse, _never
)
SET_INDEX_ALIAS = Method(
    _INDEX,
    "SetIndexAlias",
    index_pb2.SetIndexAliasRequest,
    index_pb2.SetIndexAliasResponse,
    _always,
)
# Items with the same ids are replaced by themselves.
ADD_ITEMS = Method(
    _INDEX, "AddItems", index_pb2.AddItemsRequest, index_pb2.AddItemsResponse, _always
)
ADD_ITEMS_STREAM = Method(
    _INDEX, "AddItemsStream", index_pb2.AddItemsRequest, index_pb2.AddItemsResponse, _always
)
GET_ITEMS = Method(
    _INDEX, "GetItems", index_pb2.GetItemsRequest, index_pb2.GetItemsResponse, _always
)
UPDATE_ITEMS = Method(
    _INDEX, "UpdateItems", index_pb2.UpdateItemsRequest, index_pb2.UpdateItemsResponse, _always
)
# A repeated call would answer that nothing was deleted.
DELETE_ITEMS = Method(
    _INDEX, "DeleteItems", index_pb2.DeleteItemsRequest, index_pb2.DeleteItemsResponse, _never
)
SEARCH = Method(_INDEX, "Search", index_pb2.SearchRequest, index_pb2.SearchResponse, _always)
SCAN_ITEMS = Method(
    _INDEX, "ScanItems", index_pb2.ScanItemsRequest, index_pb2.ScanItemsResponse, _always, SLOW
)

# grpc.health.v1 without a dependency on grpcio-health-checking: HealthCheckRequest (a string in
# field 1) and HealthCheckResponse (an enum in field 1) have the wire format of these wrappers.
HEALTH_CHECK = Method("grpc.health.v1.Health", "Check", StringValue, Int32Value, _always)


class HealthStatus(IntEnum):
    """``grpc.health.v1.HealthCheckResponse.ServingStatus``."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3

    @property
    def serving(self) -> bool:
        return self is HealthStatus.SERVING
