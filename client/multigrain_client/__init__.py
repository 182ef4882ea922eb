"""The Python client of multigrain. Needs grpcio, protobuf and numpy; never MindSpore.

``Client`` blocks, ``AsyncClient`` has the same methods for asyncio.
"""

from multigrain import __version__
from multigrain_client.aio.client import AsyncClient
from multigrain_client.answers import Classification, EmbeddedImage, EmbedKeywords
from multigrain_client.channel import Tls
from multigrain_client.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FieldViolation,
    Forbidden,
    ImageError,
    ImagesFailed,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    MissingPackage,
    MultigrainClientError,
    NotFound,
    Overloaded,
    ServerError,
    StreamGap,
    Unauthenticated,
    Unavailable,
    Unsupported,
    WrongState,
)
from multigrain_client.folder import FolderEmbedding
from multigrain_client.health import HealthStatus
from multigrain_client.losses import LossPoint, latest_curve
from multigrain_client.retry import RetryPolicy
from multigrain_client.sync.client import Client

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "Cancelled",
    "Classification",
    "Client",
    "DeadlineExceeded",
    "EmbedKeywords",
    "EmbeddedImage",
    "FieldViolation",
    "FolderEmbedding",
    "Forbidden",
    "HealthStatus",
    "ImageError",
    "ImagesFailed",
    "InvalidRequest",
    "JobCancelled",
    "JobFailed",
    "LossPoint",
    "MissingPackage",
    "MultigrainClientError",
    "NotFound",
    "Overloaded",
    "RetryPolicy",
    "ServerError",
    "StreamGap",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "WrongState",
    "__version__",
    "latest_curve",
]
