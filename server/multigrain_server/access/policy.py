"""What a caller may be."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    """A token has one or more. ``ADMIN`` may do everything."""

    #: Vectors and classes of images.
    INFER = "infer"
    #: Starting, cancelling, resuming and deleting jobs.
    TRAIN = "train"
    #: Loading, unloading, naming, importing and deleting models.
    ADMIN = "admin"
    #: Looking at jobs, events and models.
    READ = "read"


# MERGED: Which roles may make which call. A call that is not listed here is refused.


class Special(Enum):
    """Calls of infrastructure, whose rule is configured."""

    HEALTH = "health"
    REFLECTION = "reflection"
    PAGES = "pages"

    @property
    def roles(self) -> frozenset[Role]:
        """Who may, where a token is needed."""
        return frozenset({Role.READ}) if self is Special.PAGES else frozenset(Role)


Rule = frozenset[Role] | Special

_INFER = frozenset({Role.INFER})
_TRAIN = frozenset({Role.TRAIN})
_ADMIN = frozenset({Role.ADMIN})
_JOBS = frozenset({Role.TRAIN, Role.READ})
_ANY = frozenset(Role)

_OURS: dict[str, dict[str, Rule]] = {
    "multigrain.v1.TrainingService": {"StartTraining": _TRAIN},
    "multigrain.v1.EvaluationService": {"StartEvaluation": _TRAIN},
    "multigrain.v1.ExportService": {"StartExport": _TRAIN},
    "multigrain.v1.JobService": {
        "GetJob": _JOBS,
        "ListJobs": _JOBS,
        "StreamEvents": _JOBS,
        "CancelJob": _TRAIN,
        "ResumeJob": _TRAIN,
        "DeleteJob": _TRAIN,
    },
    "multigrain.v1.ModelService": {
        "ListModels": _ANY,
        "GetModel": _ANY,
        # All of a model, its weights included.
        "DownloadModel": _JOBS,
        "LoadModel": _ADMIN,
        "UnloadModel": _ADMIN,
        "SetAlias": _ADMIN,
        "DeleteModel": _ADMIN,
        "ImportModel": _ADMIN,
    },
    "multigrain.v1.EmbeddingService": {
        "Embed": _INFER,
        "Classify": _INFER,
        "EmbedStream": _INFER,
    },
}

_THEIRS: dict[str, dict[str, Rule]] = {
    "inference.GRPCInferenceService": {
        "ServerLive": Special.HEALTH,
        "ServerReady": Special.HEALTH,
        "ModelReady": _ANY,
        "ServerMetadata": _ANY,
        "ModelMetadata": _ANY,
        "ModelConfig": _ANY,
        "ModelStatistics": _ANY,
        "RepositoryIndex": _ANY,
        "ModelInfer": _INFER,
        "ModelStreamInfer": _INFER,
        "RepositoryModelLoad": _ADMIN,
        "RepositoryModelUnload": _ADMIN,
        # Refused in any case; whoever may call at all is told why.
        **dict.fromkeys(
            (
                *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister"),
                *("SystemSharedMemoryUnregister", "CudaSharedMemoryStatus"),
                *("CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
                *("TraceSetting", "LogSettings"),
            ),
            _ANY,
        ),
    },
    "grpc.health.v1.Health": {
        "Check": Special.HEALTH,
        "List": Special.HEALTH,
        "Watch": Special.HEALTH,
    },
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": Special.REFLECTION},
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": Special.REFLECTION},
}

_PAGES: dict[str, Rule] = {"/healthz": Special.HEALTH, "/readyz": Special.HEALTH}


def page_rule(path: str) -> Rule:
    """Of a page of the HTTP address, whether there is one or not."""
    return _PAGES.get(path, Special.PAGES)


#: By "/package.Service/Method".
RULES: dict[str, Rule] = {
    f"/{service}/{method}": rule
    for service, methods in (_OURS | _THEIRS).items()
    for method, rule in methods.items()
}
