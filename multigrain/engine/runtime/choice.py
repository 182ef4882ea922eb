"""Which runtime serves a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from multigrain.engine.runtime.base import Bundle, Compute, Runtime
from multigrain.errors import ErrorKind, MultigrainError

RuntimeName = Literal["mindspore", "onnxruntime"]


@dataclass(frozen=True)
class Choice:
    """A runtime and the reason in words."""

    name: RuntimeName
    reason: str


def choose(asked: str, bundle: Bundle, device: str) -> Choice:
    """Picks the runtime: the one that was asked for, or with "auto" the fastest that can.

    Raises:
        MultigrainError: UNSUPPORTED if the bundle has no graph for the one asked for.
    """
    has_onnx = all(head.onnx for head in bundle.manifest.heads)
    installed = find_spec("onnxruntime") is not None
    match asked:
        case "mindspore":
            return Choice("mindspore", "asked for")
        case "onnxruntime":
            if not has_onnx:
                raise MultigrainError(
                    ErrorKind.UNSUPPORTED,
                    "the bundle has no ONNX graph: export it with format onnx, "
                    "or load it with runtime mindspore",
                )
            if not installed:
                raise MultigrainError(
                    ErrorKind.UNSUPPORTED, "onnxruntime is not installed on the server"
                )
            return Choice("onnxruntime", "asked for")
        case "auto":
            if device == "ascend":
                return Choice("mindspore", "auto: the device is Ascend")
            if not has_onnx:
                return Choice("mindspore", "auto: the bundle has no ONNX graph")
            if not installed:
                return Choice("mindspore", "auto: onnxruntime is not installed")
            return Choice("onnxruntime", "auto: fastest installed for this device")
    raise MultigrainError.field(
        "runtime", f'"{asked}" is unknown: use "auto", "mindspore" or "onnxruntime"'
    )


def load(choice: Choice, bundle: Bundle, compute: Compute) -> dict[int, Runtime]:
    """Loads every resolution of the bundle. Raises MultigrainError.

    MindSpore's networks share one copy of the weights; an ONNX graph brings its own.
    """
    heads = bundle.manifest.heads
    if choice.name == "onnxruntime":
        from multigrain.engine.runtime.onnx import OnnxRuntime

        return {head.resolution: OnnxRuntime(bundle.path / head.onnx, compute) for head in heads}
    from multigrain.engine.runtime.mindspore import MindSporeRuntime

    first = MindSporeRuntime(bundle, heads[0], compute)
    others = {
        head.resolution: MindSporeRuntime(bundle, head, compute, shared=first) for head in heads[1:]
    }
    return {heads[0].resolution: first, **others}
