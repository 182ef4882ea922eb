"""Parameters of a request."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.v1.inference import service_pb2

Parameters = Mapping[str, service_pb2.InferParameter]

_KNOWN = ("normalize", "priority", "resolution", "timeout", "whiten")
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
# Of the protocol itself, and about what a response may look like: of no effect here.
_RESERVED = "triton_"
_MAX_PIXELS = 1 << 20


@dataclass(frozen=True)
class RequestParameters:
    """``timeout_ns`` 0 = none; ``resolution`` 0 = the model's."""

    resolution: int = 0
    normalize: bool = True
    whiten: bool = False
    timeout_ns: int = 0


def request_parameters(parameters: Parameters) -> RequestParameters:
    """Raises MultigrainError INVALID_FIELD for an unknown name or a value of the wrong type."""
    for name in parameters:
        if name not in _KNOWN and not name.startswith(_RESERVED):
            raise _unknown(name, parameters)
    # Accepted, because clients send it by habit; all requests wait in one queue.
    _whole(parameters, "priority", (1 << 64) - 1)
    return RequestParameters(
        resolution=_whole(parameters, "resolution", _MAX_PIXELS),
        normalize=_flag(parameters, "normalize", True),
        whiten=_flag(parameters, "whiten", False),
        timeout_ns=1000 * _whole(parameters, "timeout", (1 << 63) - 1),
    )


def refuse_all(parameters: Parameters, field: str, known: tuple[str, ...] = ()) -> None:
    """For tensors, which have no parameters but ``known``.

    Raises:
        MultigrainError: UNSUPPORTED for shared memory, INVALID_FIELD for others.
    """
    for name in parameters:
        if name.startswith("shared_memory"):
            raise MultigrainError(
                ErrorKind.UNSUPPORTED,
                f"{field}.parameters.{name}: shared memory is not offered, send and take tensors "
                "in the messages",
            )
        if name not in known:
            what = f"known is {', '.join(known)}" if known else "none is known here"
            raise MultigrainError.field(f"{field}.parameters", f"{name[:80]!r} is unknown: {what}")


def whole(parameter: service_pb2.InferParameter, field: str, most: int) -> int:
    """A whole number from 0, sent as int64 or as uint64. Raises INVALID_FIELD."""
    kind = parameter.WhichOneof("parameter_choice")
    value = parameter.uint64_param if kind == "uint64_param" else parameter.int64_param
    if kind not in ("int64_param", "uint64_param") or not 0 <= value <= most:
        raise MultigrainError.field(field, f"must be a whole number from 0 to {most}")
    return value


def _whole(parameters: Parameters, name: str, most: int) -> int:
    if name not in parameters:
        return 0
    return whole(parameters[name], f"parameters.{name}", most)


def _flag(parameters: Parameters, name: str, default: bool) -> bool:
    if name not in parameters:
        return default
    if parameters[name].WhichOneof("parameter_choice") != "bool_param":
        raise MultigrainError.field(f"parameters.{name}", "must be true or false (bool_param)")
    return parameters[name].bool_param


def _unknown(name: str, parameters: Parameters) -> MultigrainError:
    if name in _SEQUENCE:
        return MultigrainError.field(
            f"parameters.{name}", "an embedding belongs to no sequence: leave it out"
        )
    near = difflib.get_close_matches(name[:80], _KNOWN, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KNOWN)}"
    return MultigrainError.field("parameters", f"{name[:80]!r} is unknown: {hint}")
