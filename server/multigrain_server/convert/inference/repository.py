"""Parameters of loading and unloading."""

from __future__ import annotations

from collections.abc import Mapping

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.v1.inference import model_pb2

Parameters = Mapping[str, model_pb2.ModelRepositoryParameter]

_RUNTIME = "runtime"
_UNLOAD_DEPENDENTS = "unload_dependents"


def load_runtime(parameters: Parameters) -> str:
    """The runtime that is asked for; "" = the server's.

    Raises:
        MultigrainError: UNSUPPORTED for Triton's "config" and "file:...", INVALID_FIELD for what
            is unknown.
    """
    for name, value in parameters.items():
        if name == "config" or name.startswith("file:"):
            raise MultigrainError(
                ErrorKind.UNSUPPORTED,
                f"parameters.{name[:80]}: a model comes as a bundle, by an export or by "
                "ModelService.ImportModel, and is loaded as it is",
            )
        if name != _RUNTIME:
            raise _unknown(name, _RUNTIME)
        if value.WhichOneof("parameter_choice") != "string_param":
            raise MultigrainError.field(f"parameters.{name}", "must be a text (string_param)")
    return parameters[_RUNTIME].string_param if _RUNTIME in parameters else ""


def check_unload(parameters: Parameters) -> None:
    """Raises MultigrainError INVALID_FIELD for what is unknown."""
    for name in parameters:
        if name != _UNLOAD_DEPENDENTS:
            raise _unknown(name, _UNLOAD_DEPENDENTS)


def _unknown(name: str, known: str) -> MultigrainError:
    return MultigrainError.field("parameters", f"{name[:80]!r} is unknown: {known} is known")
