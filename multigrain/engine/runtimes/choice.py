"""Chooses the runtime that serves a bundle, and loads it.

"auto" uses the first runtime of the device's list that the bundle and the machine support and
whose outputs agree with the bundle's reference outputs:

- cpu: the fastest of openvino-f32, openvino-bf16 (if the CPU supports bfloat16 and the bundle has
  reference outputs) and openvino-int8 (if the bundle has an 8-bit graph), as measured on this
  machine at the default resolution (``multigrain.engine.runtimes.speed``); onnxruntime; mindspore;
- gpu: onnxruntime, mindspore;
- ascend: mindspore.

"openvino" is the OpenVINO part of the list.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Final

from multigrain.bundle.manifest import Head
from multigrain.bundle.reference import (
    Agreement,
    Precision,
    least_int8_cosine,
    read_reference,
)
from multigrain.engine.runtimes.base import Bundle, Compute, Runtime
from multigrain.engine.runtimes.speed import fastest, measure_speed
from multigrain.engine.settings import RUNTIMES
from multigrain.engine.warmup import check_agreement, warm_up
from multigrain.errors import ErrorKind, MultigrainError

_LOG = logging.getLogger(__name__)

# The most exact first.
_OPENVINO: Final[dict[str, Precision]] = {
    "openvino-f32": "f32",
    "openvino-bf16": "bf16",
    "openvino-int8": "int8",
}
_ORDER: Final[dict[str, tuple[str, ...]]] = {
    "cpu": (*_OPENVINO, "onnxruntime", "mindspore"),
    "gpu": ("onnxruntime", "mindspore"),
    "ascend": ("mindspore",),
}


@dataclass(frozen=True)
class Loaded:
    """A network for each resolution.

    Args:
        name: one of ``multigrain.engine.settings.RUNTIMES``; never "auto" or "openvino".
        runtimes: by resolution.
        reason: why this runtime was chosen.
        speeds: images per second of each runtime that was measured; empty if there was no choice.
    """

    name: str
    runtimes: dict[int, Runtime]
    reason: str
    speeds: dict[str, float] = field(default_factory=dict)


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
    return _Choice(requested, bundle, compute).load()


class _Choice:
    """One call of :func:`load`."""

    def __init__(self, requested: str, bundle: Bundle, compute: Compute) -> None:
        self._requested = requested
        self._bundle = bundle
        self._compute = compute
        self._rejected: list[str] = []
        self._speeds: dict[str, float] = {}
        # The fastest measured one, loaded at the default resolution.
        self._measured: tuple[str, Runtime] | None = None

    def load(self) -> Loaded:
        names = list(_candidates(self._requested, self._bundle, self._compute.device))
        names = [name for name in names if self._is_supported(name)]
        self._measure([name for name in names if name in _OPENVINO])
        names = [name for name in names if name in self._speeds or name not in _OPENVINO]
        while names:
            name = self._next(names)
            names.remove(name)
            try:
                loaded = self._load(name)
                found = _warm_up_and_compare(loaded, self._bundle)
            except MultigrainError as error:
                self._reject(name, error)
                continue
            reason = f"{self._why()}; {_describe_agreement(found)}"
            described = next(iter(loaded.values())).name
            _LOG.info("runtime chosen: name=%s reason=%s", described, reason)
            speeds = self._speeds if len(self._speeds) > 1 else {}
            return Loaded(name, loaded, reason, speeds)
        raise MultigrainError(
            ErrorKind.UNSUPPORTED, f"no runtime can serve the bundle. {'. '.join(self._rejected)}"
        )

    def _is_supported(self, name: str) -> bool:
        chosen = name == self._requested
        try:
            _check_supported(name, self._bundle, self._compute, chosen=chosen)
        except MultigrainError as error:
            self._reject(name, error)
            return False
        return True

    def _reject(self, name: str, error: MultigrainError) -> None:
        """Notes why a runtime is not used. Raises the error if no other one may be used."""
        if error.kind is not ErrorKind.UNSUPPORTED or name == self._requested:
            raise error
        _LOG.info("runtime rejected: name=%s reason=%s", name, error.message)
        self._rejected.append(f"{name}: {error.message}")

    def _measure(self, names: Sequence[str]) -> None:
        """Measures runtimes, the least exact one first, which is likely the fastest.

        Where there is no choice, nothing is measured. Of the loaded networks only the fastest is
        kept: two are in memory at a time.
        """
        head = self._bundle.manifest.heads[0]
        if self._requested in names:
            self._speeds = dict.fromkeys(names, 0.0)
            return
        for name in reversed(names):
            try:
                runtime = _openvino(name, self._bundle, head, self._compute)
            except MultigrainError as error:
                self._reject(name, error)
                continue
            self._speeds[name] = 0.0
            best = self._measured
            if best is None:
                self._measured = name, runtime
                continue
            if not self._speeds[best[0]]:  # now there is a choice
                self._speeds[best[0]] = measure_speed(best[1], head.resolution)
            to_beat = self._speeds[best[0]]
            self._speeds[name] = measure_speed(runtime, head.resolution, to_beat)
            if self._next(list(self._speeds)) == name:
                self._measured = name, runtime
        for name, speed in self._speeds.items():
            if len(self._speeds) > 1:
                _LOG.info("runtime measured: name=%s images_per_second=%.1f", name, speed)

    def _next(self, names: Sequence[str]) -> str:
        """Which of these to use."""
        measured = [name for name in _OPENVINO if name in names]
        return fastest(measured, self._speeds) if measured else names[0]

    def _load(self, name: str) -> dict[int, Runtime]:
        heads = self._bundle.manifest.heads
        if self._measured is None or self._measured[0] != name:
            self._measured = None  # frees it first
            return _load(name, self._bundle, self._compute)
        first, self._measured = self._measured[1], None
        others = {
            head.resolution: _openvino(name, self._bundle, head, self._compute)
            for head in heads[1:]
        }
        return {heads[0].resolution: first, **others}

    def _why(self) -> str:
        if self._requested not in ("auto", "openvino"):
            return "requested"
        parts = []
        if len(self._speeds) > 1:
            by_speed = sorted(self._speeds.items(), key=lambda item: -item[1])
            listed = ", ".join(f"{name} {speed:.4g}" for name, speed in by_speed)
            parts.append(f"measured images/s: {listed}")
        parts += [f"not {one}" for one in self._rejected]
        return f"{self._requested}: {'; '.join(parts) or 'the fastest on this device'}"


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
        why = next((head.no_int8 for head in heads if head.no_int8), "export it with int8_path")
        raise _unsupported(f"the bundle has no int8 graph: {why}")
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
        return {head.resolution: _openvino(name, bundle, head, compute) for head in heads}
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


def _openvino(name: str, bundle: Bundle, head: Head, compute: Compute) -> Runtime:
    from multigrain.engine.runtimes.openvino import OpenVinoRuntime

    precision = _OPENVINO[name]
    graph = bundle.path / _graph(head, precision)
    return OpenVinoRuntime(graph, head.preprocessing, compute, precision)


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
            least = None
            if runtime.precision == "int8" and head.int8 is not None:
                least = least_int8_cosine(head.int8.reference_cosine)
            found.append(check_agreement(runtime, reference, least))
    return found


def _describe_agreement(found: list[Agreement]) -> str:
    if not found:
        return "not compared: the bundle has no reference outputs"
    return f"cosine with the reference {min(one.cosine for one in found):.6f}"


def _unsupported(message: str) -> MultigrainError:
    return MultigrainError(ErrorKind.UNSUPPORTED, message)
