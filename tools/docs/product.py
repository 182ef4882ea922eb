"""All that the documentation takes from the product: the one place to change when code moves."""

from multigrain.errors import ErrorKind
from multigrain.spec.base import DeviceSpec, WeightsSource
from multigrain.spec.evaluation import EvaluationSpec
from multigrain.spec.export import ExportSpec
from multigrain.spec.training import TrainingSpec
from multigrain_client.cli.main import build_parser as client_parser
from multigrain_client.errors import MultigrainClientError
from multigrain_client.status import _BY_CODE as CLIENT_ERRORS
from multigrain_server.access.policy import RULES, Special
from multigrain_server.access.role import Role
from multigrain_server.app import App
from multigrain_server.config import ServerConfig
from multigrain_server.config_sources import Option, options
from multigrain_server.config_sources import build_parser as server_parser
from multigrain_server.grpc.errors import STATUS_OF

PRESETS = "multigrain/spec/presets"

__all__ = [
    "CLIENT_ERRORS",
    "PRESETS",
    "RULES",
    "STATUS_OF",
    "App",
    "DeviceSpec",
    "ErrorKind",
    "EvaluationSpec",
    "ExportSpec",
    "MultigrainClientError",
    "Option",
    "Role",
    "ServerConfig",
    "Special",
    "TrainingSpec",
    "WeightsSource",
    "client_parser",
    "options",
    "server_parser",
]
