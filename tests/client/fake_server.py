"""An in-process server that answers by simple rules and injects faults."""

# ruff: noqa: N802 - the names of methods are the contract's.

from __future__ import annotations

import hashlib
import tarfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from multigrain.v1 import (
    common_pb2,
    embedding_pb2,
    embedding_pb2_grpc,
    evaluation_pb2_grpc,
    export_pb2_grpc,
    index_pb2,
    index_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from tests.client.events import job_of, training_events
from tests.client.faults import Fault, abort

VECTOR_SIZE = 8
_ARTIFACT_KINDS = {
    "results": job_pb2.ARTIFACT_KIND_RESULT,
    "workers": job_pb2.ARTIFACT_KIND_LOG,
    "checkpoints": job_pb2.ARTIFACT_KIND_CHECKPOINT,
}


@dataclass
class FakeState:
    """Data of the server, the requests it has received, and the faults it will inject."""

    jobs: dict[str, job_pb2.Job] = field(default_factory=dict)
    events: dict[str, list[job_pb2.JobEvent]] = field(default_factory=dict)
    models: dict[str, model_pb2.Model] = field(default_factory=dict)
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    calls: Counter[str] = field(default_factory=Counter)
    requests: list[Any] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    page_size: int = 2
    default_model: str = ""
    bundle: bytes = b""
    class_name: str = "class"
    heartbeats: bool = False
    skip_seq: int = 0
    # Files of every job; a digest of these that is not theirs.
    artifacts: dict[str, bytes] = field(default_factory=dict)
    artifact_sha256: str = ""
    extra_artifacts: list[job_pb2.Artifact] = field(default_factory=list)
    # If set, a started job has succeeded at once, an evaluation with this top-1.
    finished_top1: float | None = None
    # Of every job that is started.
    warnings: list[str] = field(default_factory=list)
    # Of a job that is validated only.
    preset_reason: str = ""

    def begin(self, name: str, request: Any, context: grpc.ServicerContext) -> Fault | None:
        """Counts a call; aborts it with the next fault, or returns a fault for a later message."""
        self.calls[name] += 1
        self.requests.append(request)
        self.metadata = {str(key): str(value) for key, value in context.invocation_metadata()}
        if self.delay:
            time.sleep(self.delay)
        fault = self.faults[name].popleft() if self.faults[name] else None
        if fault is not None and fault.after == 0:
            abort(context, fault)
        return fault


def vector_of(data: bytes) -> np.ndarray:
    """The fake model: the first bytes of the image, divided by 255."""
    padded = data[:VECTOR_SIZE].ljust(VECTOR_SIZE, b"\0")
    return np.frombuffer(padded, np.uint8).astype(np.float32) / 255


class Jobs(
    job_pb2_grpc.JobServiceServicer,
    training_pb2_grpc.TrainingServiceServicer,
    evaluation_pb2_grpc.EvaluationServiceServicer,
    export_pb2_grpc.ExportServiceServicer,
):
    def __init__(self, state: FakeState) -> None:
        self.state = state

    def _start(self, name: str, kind: int, request: Any, context: Any) -> job_pb2.Job:
        self.state.begin(name, request, context)
        if request.validate_only:
            job = job_pb2.Job(kind=kind, name=request.name, preset_reason=self.state.preset_reason)
            {1: job.training, 2: job.evaluation, 3: job.export}[kind].CopyFrom(request.spec)
            return job
        for job in self.state.jobs.values():
            if request.request_id and job.request_id == request.request_id:
                return job
        job = job_of(f"job-{len(self.state.jobs) + 1}", kind=kind)
        job.request_id, job.name = request.request_id, request.name
        job.labels.update(request.labels)
        job.warnings.extend(self.state.warnings)
        target = {1: job.training, 2: job.evaluation, 3: job.export}[kind]
        target.CopyFrom(request.spec)
        self.state.jobs[job.job_id] = job
        if self.state.finished_top1 is not None:
            job.state = job_pb2.JOB_STATE_SUCCEEDED
            job.artifact.model = "fake@1"
            job.metrics["top1"] = self.state.finished_top1
            self.state.events[job.job_id] = training_events(4)
        return job

    def StartTraining(self, request, context):
        return self._start("StartTraining", job_pb2.JOB_KIND_TRAINING, request, context)

    def InspectDataset(self, request, context):
        self.state.begin("InspectDataset", request, context)
        response = training_pb2.InspectDatasetResponse(
            preset_reason=self.state.preset_reason, spec=request.spec, warnings=self.state.warnings
        )
        response.train.CopyFrom(
            training_pb2.FolderReport(
                path=request.spec.dataset.train_path,
                images=30,
                classes=2,
                class_images={"owl": 10, "jay": 20},
                checked=request.max_images or 30,
                unreadable=1,
                shortest=64,
                median=100,
                longest=200,
                left_out={"hidden": 3},
            )
        )
        response.equal.CopyFrom(
            training_pb2.PairReport(compared=30, across=1, examples=["/a.jpg = /b.jpg"])
        )
        response.plan.CopyFrom(
            training_pb2.TrainingPlan(
                total_steps=1200,
                step_images=96,
                epochs=30,
                seconds=600,
                basis="by the cost of the network",
                memory_bytes=3 << 30,
            )
        )
        return response

    def StartEvaluation(self, request, context):
        return self._start("StartEvaluation", job_pb2.JOB_KIND_EVALUATION, request, context)

    def StartExport(self, request, context):
        return self._start("StartExport", job_pb2.JOB_KIND_EXPORT, request, context)

    def _job(self, name: str, request: Any, context: Any) -> job_pb2.Job:
        self.state.begin(name, request, context)
        if request.job_id not in self.state.jobs:
            abort(
                context,
                Fault(grpc.StatusCode.NOT_FOUND, f"no job {request.job_id}", "NOT_FOUND"),
            )
        return self.state.jobs[request.job_id]

    def GetJob(self, request, context):
        return self._job("GetJob", request, context)

    def CancelJob(self, request, context):
        job = self._job("CancelJob", request, context)
        job.state = job_pb2.JOB_STATE_STOPPING
        return job

    def ResumeJob(self, request, context):
        return self._job("ResumeJob", request, context)

    def DeleteJob(self, request, context):
        del self.state.jobs[self._job("DeleteJob", request, context).job_id]
        return job_pb2.DeleteJobResponse()

    def ListJobs(self, request, context):
        self.state.begin("ListJobs", request, context)
        found = [
            job
            for job in self.state.jobs.values()
            if (not request.states or job.state in request.states)
            and job.job_id.startswith(request.id_prefix)
        ]
        start = int(request.page_token or 0)
        end = start + (request.page_size or self.state.page_size)
        token = str(end) if end < len(found) else ""
        return job_pb2.ListJobsResponse(jobs=found[start:end], next_page_token=token)

    def ListArtifacts(self, request, context):
        self._job("ListArtifacts", request, context)
        response = job_pb2.ListArtifactsResponse(artifacts=self.state.extra_artifacts)
        for name, content in sorted(self.state.artifacts.items()):
            kind = _ARTIFACT_KINDS[name.partition("/")[0]]
            if not request.kinds or kind in request.kinds:
                response.artifacts.add(name=name, kind=kind, bytes=len(content))
        return response

    def GetArtifact(self, request, context):
        self._job("GetArtifact", request, context)
        if request.name not in self.state.artifacts:
            text = f"no file {request.name}"
            abort(context, Fault(grpc.StatusCode.NOT_FOUND, text, "NOT_FOUND"))
        content = self.state.artifacts[request.name]
        data = content[request.offset :]
        yield job_pb2.GetArtifactResponse(chunk=data[:7], total_bytes=len(content))
        digest = self.state.artifact_sha256 or hashlib.sha256(data).hexdigest()
        yield job_pb2.GetArtifactResponse(chunk=data[7:], sha256=digest)

    def StreamEvents(self, request, context) -> Iterator[job_pb2.JobEventBatch]:
        for event in self._events(request, context):
            yield job_pb2.JobEventBatch(events=[event])

    def _events(self, request: Any, context: Any) -> Iterator[job_pb2.JobEvent]:
        fault = self.state.begin("StreamEvents", request, context)
        sent = 0
        for event in self.state.events.get(request.job_id, []):
            if event.seq <= request.after_seq or event.seq == self.state.skip_seq:
                continue
            kind = job_pb2.EventKind.Value(f"EVENT_KIND_{event.WhichOneof('event').upper()}")
            if request.kinds and kind not in request.kinds:
                continue
            if fault is not None and sent == fault.after:
                abort(context, fault)
            yield event
            sent += 1
            if self.state.heartbeats:
                yield job_pb2.JobEvent(seq=event.seq, heartbeat=job_pb2.Heartbeat())
        if fault is not None:
            abort(context, fault)


class Embedding(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Fails images that begin with b"bad"."""

    def __init__(self, state: FakeState) -> None:
        self.state = state

    def _status(self, data: bytes) -> embedding_pb2.ItemStatus:
        if data.startswith(b"bad"):
            return embedding_pb2.ItemStatus(
                code=3, kind=common_pb2.ERROR_KIND_IMAGE_UNREADABLE, message="not an image"
            )
        return embedding_pb2.ItemStatus()

    def _embed(self, request: embedding_pb2.EmbedRequest) -> embedding_pb2.EmbedResponse:
        response = embedding_pb2.EmbedResponse(model="fake@1")
        for data in request.images:
            result = response.results.add(status=self._status(data))
            if result.status.code:
                continue
            values, vector = vector_of(data), result.embedding
            vector.size, vector.dtype = len(values), request.dtype
            if request.dtype == embedding_pb2.DTYPE_INT8:
                vector.scale = 1 / 127
                vector.data = np.round(values * 127).astype(np.int8).tobytes()
            elif request.dtype == embedding_pb2.DTYPE_FP16:
                vector.data = values.astype("<f2").tobytes()
            else:
                vector.data = values.astype("<f4").tobytes()
        return response

    def Embed(self, request, context):
        self.state.begin("Embed", request, context)
        return self._embed(request)

    def EmbedStream(self, request_iterator, context):
        fault = self.state.begin("EmbedStream", None, context)
        for count, request in enumerate(request_iterator):
            if fault is not None and count == fault.after:
                abort(context, fault)
            self.state.requests.append(request)
            yield self._embed(request)
        if fault is not None:
            abort(context, fault)

    def Classify(self, request, context):
        self.state.begin("Classify", request, context)
        response = embedding_pb2.ClassifyResponse(model="fake@1")
        for data in request.images:
            result = response.results.add(status=self._status(data))
            for rank in range(request.top_k if not result.status.code else 0):
                result.classes.add(
                    class_id=rank, label=f"{self.state.class_name} {rank}", probability=0.5**rank
                )
        return response


class Indexes(index_pb2_grpc.IndexServiceServicer):
    """Has one index, "pets"."""

    def __init__(self, state: FakeState) -> None:
        self.state = state

    def ListIndexes(self, request, context):
        self.state.begin("ListIndexes", request, context)
        return index_pb2.ListIndexesResponse(indexes=[index_pb2.Index(name="pets", items=3)])

    def GetIndex(self, request, context):
        self.state.begin("GetIndex", request, context)
        return index_pb2.Index(name="pets", items=3)

    def CreateIndex(self, request, context):
        self.state.begin("CreateIndex", request, context)
        return index_pb2.Index(name=request.name)

    def DeleteIndex(self, request, context):
        self.state.begin("DeleteIndex", request, context)
        return index_pb2.DeleteIndexResponse()

    def SetIndexAlias(self, request, context):
        self.state.begin("SetIndexAlias", request, context)
        return index_pb2.SetIndexAliasResponse()


class Models(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, state: FakeState) -> None:
        self.state = state

    def ListModels(self, request, context):
        self.state.begin("ListModels", request, context)
        models = list(self.state.models.values())
        start = int(request.page_token or 0)
        end = start + (request.page_size or self.state.page_size)
        token = str(end) if end < len(models) else ""
        return model_pb2.ListModelsResponse(
            models=models[start:end],
            next_page_token=token,
            aliases={"production": "fake@1"},
            default_model=self.state.default_model,
        )

    def _model(self, name: str, request: Any, context: Any) -> model_pb2.Model:
        self.state.begin(name, request, context)
        if request.model not in self.state.models:
            abort(
                context,
                Fault(grpc.StatusCode.NOT_FOUND, f"no model {request.model}", "NOT_FOUND"),
            )
        return self.state.models[request.model]

    def GetModel(self, request, context):
        return self._model("GetModel", request, context)

    def LoadModel(self, request, context):
        model = self._model("LoadModel", request, context)
        model.state = model_pb2.MODEL_STATE_READY
        return model

    def UnloadModel(self, request, context):
        model = self._model("UnloadModel", request, context)
        model.state = model_pb2.MODEL_STATE_UNLOADED
        return model

    def SetAlias(self, request, context):
        self.state.begin("SetAlias", request, context)
        return model_pb2.SetAliasResponse(alias=request.alias, model=request.model)

    def DeleteModel(self, request, context):
        self._model("DeleteModel", request, context)
        return model_pb2.DeleteModelResponse()

    def ImportModel(self, request_iterator, context):
        parts = list(request_iterator)
        self.state.begin("ImportModel", parts[0], context)
        self.state.bundle = b"".join(part.chunk for part in parts[1:])
        with tarfile.open(fileobj=BytesIO(self.state.bundle)) as archive:
            files = {member.name: member.size for member in archive}
        return model_pb2.Model(
            name=parts[0].start.name, version=parts[0].start.version or 1, files=files
        )

    def DownloadModel(self, request, context):
        self.state.begin("DownloadModel", request, context)
        data = self.state.bundle
        yield model_pb2.DownloadModelResponse(chunk=data[:7], total_bytes=len(data))
        digest = hashlib.sha256(data).hexdigest()
        yield model_pb2.DownloadModelResponse(chunk=data[7:], sha256=digest)


class FakeServer:
    """Listens on a loopback port (0 = a free one) until ``stop``."""

    def __init__(self, port: int = 0) -> None:
        self.state = FakeState()
        self._server = grpc.server(
            ThreadPoolExecutor(16),
            options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 0)],
        )
        jobs = Jobs(self.state)
        job_pb2_grpc.add_JobServiceServicer_to_server(jobs, self._server)
        training_pb2_grpc.add_TrainingServiceServicer_to_server(jobs, self._server)
        evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server(jobs, self._server)
        export_pb2_grpc.add_ExportServiceServicer_to_server(jobs, self._server)
        embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(
            Embedding(self.state), self._server
        )
        model_pb2_grpc.add_ModelServiceServicer_to_server(Models(self.state), self._server)
        index_pb2_grpc.add_IndexServiceServicer_to_server(Indexes(self.state), self._server)
        checks = health.HealthServicer()
        checks.set("multigrain.v1.EmbeddingService", health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()
