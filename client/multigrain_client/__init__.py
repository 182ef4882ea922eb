"""The Python client of multigrain. It needs grpcio, protobuf and numpy, but not MindSpore.

``Client`` is blocking; ``AsyncClient`` has the same methods for asyncio.
"""

from multigrain import __version__
from multigrain_client.aio.client import AsyncClient
from multigrain_client.channel import Tls
from multigrain_client.errors import (
    AlreadyExists,
    Cancelled,
    ClientClosed,
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
from multigrain_client.folder_embedding import FolderEmbedding
from multigrain_client.folder_sync import FolderSync
from multigrain_client.images import Classification, ClassifiedImage, EmbeddedImage, EmbedKeywords
from multigrain_client.index_items import Hit, Hits, IndexItem, SearchKeywords
from multigrain_client.jobs import LossCurve, latest_curve
from multigrain_client.loss_point import LossPoint
from multigrain_client.methods import HealthStatus
from multigrain_client.notebook import register as _register
from multigrain_client.retry import RetryPolicy
from multigrain_client.sync.client import Client

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "Cancelled",
    "Classification",
    "ClassifiedImage",
    "Client",
    "ClientClosed",
    "DeadlineExceeded",
    "EmbedKeywords",
    "EmbeddedImage",
    "FieldViolation",
    "FolderEmbedding",
    "FolderSync",
    "Forbidden",
    "HealthStatus",
    "Hit",
    "Hits",
    "ImageError",
    "ImagesFailed",
    "IndexItem",
    "InvalidRequest",
    "JobCancelled",
    "JobFailed",
    "LossCurve",
    "LossPoint",
    "MissingPackage",
    "MultigrainClientError",
    "NotFound",
    "Overloaded",
    "RetryPolicy",
    "SearchKeywords",
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

_register()
