"""All that the documentation takes from the product: the one place to change when code moves."""

from multigrain.errors import ErrorKind
from multigrain.specs.base import DeviceSpec, WeightsSource
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.specs.export import ExportSpec
from multigrain.specs.training import TrainingSpec
from multigrain_client.cli.main import build_parser as client_parser
from multigrain_client.errors import _BY_CODE as CLIENT_ERRORS
from multigrain_client.errors import MultigrainClientError
from multigrain_server.access.policy import RULES, Role, Special
from multigrain_server.app import App
from multigrain_server.config import ServerConfig
from multigrain_server.convert.errors import STATUS_OF
from multigrain_server.settings_sources import Option, options
from multigrain_server.settings_sources import build_parser as server_parser

PRESETS = "multigrain/specs/presets"

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
