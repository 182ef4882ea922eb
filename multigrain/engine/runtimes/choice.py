"""Chooses the runtime that serves a bundle, and loads it.

"auto" uses the first runtime of the device's list that the bundle and the machine support and
whose outputs agree with the bundle's reference outputs:

- cpu: openvino-int8 (if the bundle was exported with int8), openvino-bf16 (if the CPU supports
  bfloat16 and the bundle has reference outputs), openvino-f32, onnxruntime, mindspore;
- gpu: onnxruntime, mindspore;
- ascend: mindspore.

"openvino" is the OpenVINO part of the list.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from multigrain.bundle.manifest import Head
from multigrain.bundle.reference import Agreement, Precision, read_reference
from multigrain.engine.runtimes.base import Bundle, Compute, Runtime
from multigrain.engine.settings import RUNTIMES
from multigrain.engine.warmup import check_agreement, warm_up
from multigrain.errors import ErrorKind, MultigrainError

_LOG = logging.getLogger(__name__)

_OPENVINO: Final[dict[str, Precision]] = {
    "openvino-int8": "int8",
    "openvino-bf16": "bf16",
    "openvino-f32": "f32",
}
_ORDER: Final[dict[str, tuple[str, ...]]] = {
    "cpu": (*_OPENVINO, "onnxruntime", "mindspore"),
    "gpu": ("onnxruntime", "mindspore"),
    "ascend": ("mindspore",),
}


@dataclass(frozen=True)
class Loaded:
    """A network for each resolution, and why this runtime was chosen."""

    runtimes: dict[int, Runtime]
    reason: str


def load(requested: str, bundle: Bundle, compute: Compute) -> Loaded:
    """Loads the network of every resolution, warms it up and compares it with the reference.

    Args:
        requested: name of a runtime, or "auto" or "openvino".
        bundle: to serve.
        compute: device, threads and batch size.

    Raises:
        MultigrainError: INVALID_FIELD for an unknown name; UNSUPPORTED if no requested runtime
            can serve the bundle; CHECKPOINT if the bundle is damaged.
    """
    if requested not in RUNTIMES:
        raise MultigrainError.field(
            "runtime", f"{requested!r} is unknown: use one of {', '.join(RUNTIMES)}"
        )
    rejected: list[str] = []
    for name in _candidates(requested, bundle, compute.device):
        try:
            _check_supported(name, bundle, compute, chosen=name == requested)
            loaded = _load(name, bundle, compute)
            found = _warm_up_and_compare(loaded, bundle)
        except MultigrainError as error:
            if error.kind is not ErrorKind.UNSUPPORTED or name == requested:
                raise
            _LOG.info("runtime rejected: name=%s reason=%s", name, error.message)
            rejected.append(f"{name}: {error.message}")
            continue
        why = "requested" if name == requested else _describe_choice(requested, rejected)
        reason = f"{why}; {_describe_agreement(found)}"
        name = next(iter(loaded.values())).name
        _LOG.info("runtime chosen: name=%s reason=%s", name, reason)
        return Loaded(loaded, reason)
    raise MultigrainError(
        ErrorKind.UNSUPPORTED, f"no runtime can serve the bundle. {'. '.join(rejected)}"
    )


def _candidates(requested: str, bundle: Bundle, device: str) -> tuple[str, ...]:
    if requested not in ("auto", "openvino"):
        return (requested,)
    names = _ORDER[device] if requested == "auto" else tuple(_OPENVINO)
    # int8 is chosen at export: most bundles lack it, which is not worth reporting.
    return names if _has_int8(bundle) else tuple(n for n in names if n != "openvino-int8")


def _has_int8(bundle: Bundle) -> bool:
    return all(head.int8 is not None for head in bundle.manifest.heads)


def _check_supported(name: str, bundle: Bundle, compute: Compute, *, chosen: bool) -> None:
    """Raises MultigrainError UNSUPPORTED, before any library is imported."""
    heads = bundle.manifest.heads
    if name == "mindspore":
        weights = bundle.manifest.weights
        if weights not in bundle.manifest.files:
            raise _unsupported(f"the bundle has no {weights}: use another runtime")
        return
    library = name.partition("-")[0]
    if name == "openvino-int8" and not _has_int8(bundle):
        raise _unsupported("the bundle has no int8 graph: export it with int8_path")
    if not all(head.onnx for head in heads):
        raise _unsupported(
            "the bundle has no ONNX graph: export it with format onnx, "
            "or load it with runtime mindspore"
        )
    if library == "openvino" and compute.device != "cpu":
        raise _unsupported("openvino is used on the cpu device only")
    if find_spec(library) is None:
        raise _unsupported(f"{library} is not installed on the server")
    if name == "openvino-bf16" and not chosen and not all(head.reference for head in heads):
        raise _unsupported(
            "the bundle has no reference outputs to check bfloat16: export it again, or request "
            "openvino-bf16"
        )


def _load(name: str, bundle: Bundle, compute: Compute) -> dict[int, Runtime]:
    """Loads the network of every head. MindSpore's share one copy of the weights."""
    heads = bundle.manifest.heads
    if name in _OPENVINO:
        from multigrain.engine.runtimes.openvino import OpenVinoRuntime

        precision = _OPENVINO[name]
        return {
            head.resolution: OpenVinoRuntime(
                bundle.path / _graph(head, precision), head.preprocessing, compute, precision
            )
            for head in heads
        }
    if name == "onnxruntime":
        from multigrain.engine.runtimes.onnx import OnnxRuntime

        return {
            head.resolution: OnnxRuntime(bundle.path / head.onnx, head.preprocessing, compute)
            for head in heads
        }
    from multigrain.engine.runtimes.mindspore import MindSporeRuntime

    first = MindSporeRuntime(bundle, heads[0], compute)
    others = {
        head.resolution: MindSporeRuntime(bundle, head, compute, shared=first) for head in heads[1:]
    }
    return {heads[0].resolution: first, **others}


def _graph(head: Head, precision: Precision) -> str:
    return head.int8.file if precision == "int8" and head.int8 is not None else head.onnx


def _warm_up_and_compare(runtimes: dict[int, Runtime], bundle: Bundle) -> list[Agreement]:
    """The agreements of the heads that have reference outputs."""
    manifest = bundle.manifest
    found = []
    for head in manifest.heads:
        runtime = runtimes[head.resolution]
        warm_up(runtime, head.resolution, manifest.embedding_size, manifest.classes)
        if head.reference:
            reference = read_reference(bundle.path / head.reference)
            found.append(check_agreement(runtime, reference))
    return found


def _describe_choice(requested: str, rejected: list[str]) -> str:
    if not rejected:
        return f"{requested}: the fastest on this device"
    return f"{requested}: not {'; not '.join(rejected)}"


def _describe_agreement(found: list[Agreement]) -> str:
    if not found:
        return "not compared: the bundle has no reference outputs"
    return f"cosine with the reference {min(one.cosine for one in found):.6f}"


def _unsupported(message: str) -> MultigrainError:
    return MultigrainError(ErrorKind.UNSUPPORTED, message)
