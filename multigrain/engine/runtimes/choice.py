"""Which runtime serves a bundle, and loading it.

"auto" takes the first of its device's list that the bundle and this machine allow and whose
outputs agree with the bundle's reference:

cpu: openvino-int8 (of a bundle that was exported with int8), openvino-bf16 (where the CPU has
bfloat16 and the bundle a reference that proves it), openvino-f32, onnxruntime, mindspore;
gpu: onnxruntime, mindspore; ascend: mindspore. "openvino" is the openvino part of the list.
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
    """A network for each resolution, and why this runtime, in words."""

    runtimes: dict[int, Runtime]
    reason: str


def load(asked: str, bundle: Bundle, compute: Compute) -> Loaded:
    """Loads every resolution, compares it with the reference, and warms it up.

    Raises:
        MultigrainError: INVALID_FIELD for an unknown name; UNSUPPORTED if no runtime that was
            asked for can serve the bundle; CHECKPOINT if the bundle is damaged.
    """
    if asked not in RUNTIMES:
        raise MultigrainError.field(
            "runtime", f'"{asked}" is unknown: use one of {", ".join(RUNTIMES)}'
        )
    refusals: list[str] = []
    for name in _candidates(asked, bundle, compute.device):
        try:
            _possible(name, bundle, compute, chosen=name == asked)
            loaded = _load(name, bundle, compute)
            found = _check(loaded, bundle)
        except MultigrainError as error:
            if error.kind is not ErrorKind.UNSUPPORTED or name == asked:
                raise
            _LOG.info("%s is not used: %s", name, error.message)
            refusals.append(f"{name}: {error.message}")
            continue
        why = "asked for" if name == asked else _why(asked, refusals)
        reason = f"{why}; {_describe(found)}"
        _LOG.info("served by %s (%s)", next(iter(loaded.values())).name, reason)
        return Loaded(loaded, reason)
    raise MultigrainError(
        ErrorKind.UNSUPPORTED, f"no runtime can serve the bundle. {'. '.join(refusals)}"
    )


def _candidates(asked: str, bundle: Bundle, device: str) -> tuple[str, ...]:
    if asked not in ("auto", "openvino"):
        return (asked,)
    names = _ORDER[device] if asked == "auto" else tuple(_OPENVINO)
    # Int8 is the exporter's decision: no reason to be told of in every other bundle.
    return names if _has_int8(bundle) else tuple(n for n in names if n != "openvino-int8")


def _has_int8(bundle: Bundle) -> bool:
    return all(head.int8 is not None for head in bundle.manifest.heads)


def _possible(name: str, bundle: Bundle, compute: Compute, *, chosen: bool) -> None:
    """Raises MultigrainError UNSUPPORTED, before a library is imported."""
    heads = bundle.manifest.heads
    if name == "mindspore":
        weights = bundle.manifest.weights
        if not (bundle.path / weights).is_file():
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
            "the bundle carries no reference to prove it by: export it again, or ask for it"
        )


def _load(name: str, bundle: Bundle, compute: Compute) -> dict[int, Runtime]:
    """MindSpore's networks share one copy of the weights; an ONNX graph brings its own."""
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


def _check(runtimes: dict[int, Runtime], bundle: Bundle) -> list[Agreement]:
    """Warms up and compares; the agreements of the heads that carry a reference."""
    manifest = bundle.manifest
    classes = manifest.model.classes or len(manifest.labels)
    found = []
    for head in manifest.heads:
        runtime = runtimes[head.resolution]
        warm_up(runtime, head.resolution, manifest.embedding_size, classes)
        if head.reference:
            found.append(_compare(runtime, head, bundle))
    return found


def _compare(runtime: Runtime, head: Head, bundle: Bundle) -> Agreement:
    reference = read_reference(bundle.path / head.reference)
    return check_agreement(runtime, reference)


def _why(asked: str, refusals: list[str]) -> str:
    """Why what comes earlier on the list was not taken."""
    return f"{asked}: not {'; not '.join(refusals)}" if refusals else f"{asked}: the fastest here"


def _describe(found: list[Agreement]) -> str:
    if not found:
        return "not compared: the bundle carries no reference"
    return f"cosine with the reference {min(one.cosine for one in found):.6f}"


def _unsupported(message: str) -> MultigrainError:
    return MultigrainError(ErrorKind.UNSUPPORTED, message)
