"""Roles, and which of them may make which call. Calls that are not listed are refused."""

from __future__ import annotations

from enum import Enum

from multigrain_server import service_names


class Role(Enum):
    """A role of a token, which has one or more. ``ADMIN`` may make every call."""

    #: Embed and classify images.
    INFER = "infer"
    #: Start, cancel, resume and delete jobs.
    TRAIN = "train"
    #: Load, unload, alias, import and delete models.
    ADMIN = "admin"
    #: Read jobs, events and models.
    READ = "read"
    #: Create, change and delete indexes, and search them.
    INDEX = "index"


class Special(Enum):
    """Calls of the infrastructure, whose rule is configured (``AccessConfig``)."""

    HEALTH = "health"
    REFLECTION = "reflection"
    PAGES = "pages"

    @property
    def roles(self) -> frozenset[Role]:
        """Roles that may make the call where a token is needed."""
        return frozenset({Role.READ}) if self is Special.PAGES else frozenset(Role)


Rule = frozenset[Role] | Special

_INFER = frozenset({Role.INFER})
_TRAIN = frozenset({Role.TRAIN})
_ADMIN = frozenset({Role.ADMIN})
_JOBS = frozenset({Role.TRAIN, Role.READ})
_SEARCH = frozenset({Role.INFER, Role.INDEX})
_INDEX = frozenset({Role.INDEX})
_ANY = frozenset(Role)

_MULTIGRAIN: dict[str, dict[str, Rule]] = {
    service_names.TRAINING: {"StartTraining": _TRAIN, "InspectDataset": _TRAIN},
    service_names.EVALUATION: {"StartEvaluation": _TRAIN},
    service_names.EXPORT: {"StartExport": _TRAIN},
    service_names.JOB: {
        "GetJob": _JOBS,
        "ListJobs": _JOBS,
        "StreamEvents": _JOBS,
        "ListArtifacts": _JOBS,
        # Includes the weights.
        "GetArtifact": _JOBS,
        "CancelJob": _TRAIN,
        "ResumeJob": _TRAIN,
        "DeleteJob": _TRAIN,
    },
    service_names.MODEL: {
        "ListModels": _ANY,
        "GetModel": _ANY,
        # Includes the weights.
        "DownloadModel": _JOBS,
        "LoadModel": _ADMIN,
        "UnloadModel": _ADMIN,
        "SetAlias": _ADMIN,
        "DeleteModel": _ADMIN,
        "ImportModel": _ADMIN,
    },
    service_names.EMBEDDING: {
        "Embed": _INFER,
        "Classify": _INFER,
        "EmbedStream": _INFER,
    },
    service_names.INDEX: {
        "GetIndex": _ANY,
        "ListIndexes": _ANY,
        "Search": _SEARCH,
        "GetItems": _SEARCH,
        # Includes the vectors.
        "ScanItems": _SEARCH,
        "CreateIndex": _INDEX,
        "DeleteIndex": _INDEX,
        "SetIndexAlias": _INDEX,
        "AddItems": _INDEX,
        "AddItemsStream": _INDEX,
        "UpdateItems": _INDEX,
        "DeleteItems": _INDEX,
    },
}

_STANDARD: dict[str, dict[str, Rule]] = {
    service_names.INFERENCE: {
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
        # Not supported; every role may call them and gets the reason.
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
    service_names.HEALTH: {
        "Check": Special.HEALTH,
        "List": Special.HEALTH,
        "Watch": Special.HEALTH,
    },
    service_names.REFLECTION_V1ALPHA: {"ServerReflectionInfo": Special.REFLECTION},
    service_names.REFLECTION_V1: {"ServerReflectionInfo": Special.REFLECTION},
}

_PAGES: dict[str, Rule] = {
    "/healthz": Special.HEALTH,
    "/readyz": Special.HEALTH,
    # Its script makes calls of this role, with the credentials that the browser was given.
    "/try": _INFER,
}


def page_rule(path: str) -> Rule:
    """The rule of a path of the HTTP address, whether it exists or not."""
    return _PAGES.get(path, Special.PAGES)


#: Rules by "/package.Service/Method".
RULES: dict[str, Rule] = {
    f"/{service}/{method}": rule
    for service, methods in (_MULTIGRAIN | _STANDARD).items()
    for method, rule in methods.items()
}
