"""Choice of the runtime; none is used whose outputs differ from the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest

from multigrain.bundle.folder import read
from multigrain.bundle.manifest import Head, Int8Entry
from multigrain.bundle.reference import MIN_COSINE, Precision, read_reference, write_reference
from multigrain.engine.runtimes import choice
from multigrain.engine.runtimes.base import (
    Bundle,
    Compute,
    FloatArray,
    Outputs,
    Pixels,
    Runtime,
)
from multigrain.engine.runtimes.choice import load
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.memory import is_out_of_memory
from tests.engine.bundles import write_bundle

COMPUTE = Compute(threads=1, max_batch=4)
REFERENCE = "reference.safetensors"


def bundle(path: Path, *, referenced: bool = True, **changes: object) -> Bundle:
    folder = write_bundle(path, referenced=referenced)
    manifest = read(folder)
    head = manifest.heads[0].model_copy(update=changes)
    return Bundle(folder, manifest.model_copy(update={"heads": (head,)}))


def has_bf16() -> bool:
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def without(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: None if name in libraries else True)


def test_auto_measures_bfloat16_if_the_cpu_has_it_and_reports_the_cosine(tmp_path: Path) -> None:
    loaded = load("auto", bundle(tmp_path), COMPUTE)
    (runtime,) = loaded.runtimes.values()
    # Which is faster for so small a network depends on the processor.
    assert runtime.precision in (("bf16", "f32") if has_bf16() else ("f32",))
    assert runtime.name.startswith("openvino")
    assert runtime.name.endswith(f"cpu {runtime.precision}")
    assert loaded.name == f"openvino-{runtime.precision}"
    if has_bf16():
        assert loaded.reason.startswith("auto: measured images/s: openvino-")
    cosine = float(loaded.reason.rpartition(" ")[2])
    assert MIN_COSINE["bf16"] <= cosine <= 1.000001


def test_without_a_reference_auto_computes_in_float32(tmp_path: Path) -> None:
    loaded = load("auto", bundle(tmp_path, referenced=False, reference=""), COMPUTE)
    assert loaded.runtimes[32].precision == "f32"
    assert "no reference outputs to check bfloat16" in loaded.reason
    assert "not compared" in loaded.reason


def test_a_cpu_without_bfloat16_computes_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OldCpu(openvino.Core):
        def get_property(self, *names: str) -> object:
            return (
                ["FP32"] if "OPTIMIZATION_CAPABILITIES" in names else super().get_property(*names)
            )

    monkeypatch.setattr(openvino, "Core", OldCpu)
    loaded = load("openvino", bundle(tmp_path), COMPUTE)
    assert loaded.runtimes[32].precision == "f32"
    assert "no bfloat16 instructions" in loaded.reason
    with pytest.raises(MultigrainError, match="no bfloat16") as caught:
        load("openvino-bf16", bundle(tmp_path / "2"), COMPUTE)
    assert caught.value.kind is ErrorKind.UNSUPPORTED


def test_auto_skips_a_runtime_whose_outputs_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MIN_COSINE, "bf16", 1.1)
    loaded = load("openvino", bundle(tmp_path), COMPUTE)
    assert loaded.runtimes[32].precision == "f32"
    if has_bf16():
        assert "bf16 is refused beyond a cosine of 1.1" in loaded.reason


def test_a_graph_with_other_outputs_is_refused_by_every_runtime(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    right = read_reference(made.path / REFERENCE)
    embedding = right.embedding.copy()
    embedding[1, 0] += 0.1 * np.linalg.norm(embedding[1])
    write_reference(made.path / REFERENCE, type(right)(right.pixels, embedding, right.logits))
    for asked in ("openvino-f32", "onnxruntime"):
        with pytest.raises(MultigrainError, match="differ from the exported") as caught:
            load(asked, made, COMPUTE)
        assert caught.value.kind is ErrorKind.UNSUPPORTED
    with pytest.raises(MultigrainError, match="no runtime can serve the bundle") as caught:
        load("auto", made, COMPUTE)
    for name in ("openvino-f32: ", "onnxruntime: ", "mindspore: the bundle has no weights"):
        assert name in caught.value.message


def test_class_scores_are_compared_too(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    right = read_reference(made.path / REFERENCE)
    logits = right.logits + np.float32(0.01)
    write_reference(made.path / REFERENCE, type(right)(right.pixels, right.embedding, logits))
    with pytest.raises(MultigrainError, match=r"scores by 0\.00"):
        load("onnxruntime", made, COMPUTE)


def test_a_reference_of_another_network_is_a_damaged_bundle(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    right = read_reference(made.path / REFERENCE)
    wrong = type(right)(right.pixels, right.embedding[:, :5], right.logits)
    write_reference(made.path / REFERENCE, wrong)
    with pytest.raises(
        MultigrainError, match=r"shape \(3, 16\).*reference outputs have \(3, 5\)"
    ) as caught:
        load("auto", made, COMPUTE)
    assert caught.value.kind is ErrorKind.CHECKPOINT


@pytest.mark.parametrize(
    ("missing", "device", "name"),
    [(("openvino",), "cpu", "onnxruntime"), ((), "cpu", "openvino")],
)
def test_auto_uses_the_installed_runtimes(
    missing: tuple[str, ...],
    device: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, *missing)
    loaded = load("auto", bundle(tmp_path), Compute(device, 1, 4))
    assert loaded.runtimes[32].name.startswith(name)


def test_an_unavailable_runtime_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bundle(tmp_path)
    no_graph = bundle(tmp_path / "2", onnx="")
    for asked, where, device, reason in (
        ("openvino-int8", made, "cpu", "no int8 graph"),
        ("openvino-bf16", no_graph, "cpu", "no ONNX graph"),
        ("onnxruntime", no_graph, "cpu", "no ONNX graph"),
        ("openvino-f32", made, "gpu", "cpu device only"),
        ("mindspore", made, "cpu", "no weights.safetensors"),
    ):
        with pytest.raises(MultigrainError, match=reason) as caught:
            load(asked, where, Compute(device, 1, 4))
        assert caught.value.kind is ErrorKind.UNSUPPORTED
    without(monkeypatch, "openvino")
    with pytest.raises(MultigrainError, match="openvino is not installed"):
        load("openvino", made, COMPUTE)
    with pytest.raises(MultigrainError, match="unknown: use one of auto, openvino"):
        load("tensorrt", made, COMPUTE)


def test_a_file_that_is_not_a_graph_is_refused(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    (made.path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(MultigrainError, match=r"openvino cannot load model\.onnx"):
        load("openvino-f32", made, COMPUTE)


@pytest.mark.parametrize("requested", ["auto", "openvino-f32", "onnxruntime"])
@pytest.mark.parametrize("text", ["std::bad_alloc", "Failed to allocate memory for requested"])
def test_no_other_runtime_is_tried_without_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requested: str, text: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(openvino.Core, "read_model", fail)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(RuntimeError, match=text) as caught:
        load(requested, bundle(tmp_path), COMPUTE)
    # The engine ends with it: see exit_if_out_of_memory.
    assert is_out_of_memory(caught.value)


class Fake(Runtime):
    """A runtime of a precision, with the bundle's reference outputs or others."""

    def __init__(self, made: Bundle, precision: Precision, *, right: bool = True) -> None:
        self.name, self.precision = f"fake cpu {precision}", precision
        self.preprocessing = made.manifest.heads[0].preprocessing
        self.best_batch, self.warm_sizes = 4, (1,)
        self.reference = read_reference(made.path / REFERENCE)
        self.turned = 0 if right else 1

    def run(self, images: FloatArray, *, scores: bool = True) -> Outputs:
        return self._outputs(list(range(len(images))))

    def run_pixels(self, images: Sequence[Pixels], *, scores: bool = True) -> Outputs:
        known = self.reference.pixels
        rows = [int((known == image).all(axis=(1, 2, 3)).argmax()) for image in images]
        return self._outputs([(row + self.turned) % len(known) for row in rows])

    def _outputs(self, rows: list[int]) -> Outputs:
        return Outputs(self.reference.embedding[rows], self.reference.logits[rows])


def with_int8(path: Path) -> Bundle:
    entry = Int8Entry(
        file="q.xml", calibration_images=1, images=1, cosine_mean=1, cosine_min=1, same_top1=1
    )
    return bundle(path, int8=entry)


@pytest.mark.parametrize(
    ("speeds", "wrong", "chosen", "order"),
    [
        ({"int8": 26.6, "f32": 12.5}, (), "openvino-int8", ["int8", "bf16", "f32"]),
        ({"int8": 436.0, "bf16": 246.0, "f32": 48.0}, (), "openvino-int8", None),
        ({"int8": 250.0, "bf16": 246.0, "f32": 48.0}, (), "openvino-bf16", None),
        ({"int8": 20.0, "f32": 20.0}, (), "openvino-f32", None),
        ({"int8": 436.0, "bf16": 246.0, "f32": 48.0}, ("int8",), "openvino-bf16", None),
        ({"int8": 436.0, "bf16": 246.0, "f32": 48.0}, ("int8", "bf16"), "openvino-f32", None),
    ],
)
def test_auto_chooses_by_measurement_among_those_that_agree(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    speeds: dict[str, float],
    wrong: tuple[str, ...],
    chosen: str,
    order: list[str] | None,
) -> None:
    made = with_int8(tmp_path)
    loads: list[str] = []

    def fake(name: str, bundle: Bundle, head: Head, compute: Compute) -> Runtime:
        precision = choice._OPENVINO[name]
        loads.append(precision)
        if precision not in speeds:
            raise MultigrainError(ErrorKind.UNSUPPORTED, "no bfloat16 here")
        return Fake(bundle, precision, right=precision not in wrong)

    def measured(runtime: Runtime, resolution: int, to_beat: float = 0.0) -> float:
        assert resolution == 32
        return speeds[runtime.precision]

    monkeypatch.setattr(choice, "_openvino", fake)
    monkeypatch.setattr(choice, "measure_speed", measured)
    loaded = load("auto", made, COMPUTE)
    assert loaded.name == chosen
    assert loaded.runtimes[32].name == f"fake cpu {chosen.removeprefix('openvino-')}"
    assert loaded.speeds == {f"openvino-{name}": speed for name, speed in speeds.items()}
    assert "auto: measured images/s: " in loaded.reason
    for precision, speed in speeds.items():
        assert f"openvino-{precision} {speed:.4g}" in loaded.reason
    for precision in wrong:
        assert f"not openvino-{precision}: the outputs of fake cpu {precision} differ" in (
            loaded.reason
        )
    if order is not None:
        # The chosen network is not loaded again.
        assert loads[: len(order)] == order


def test_nothing_is_measured_without_a_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(choice, "measure_speed", never)
    loaded = load("openvino-f32", with_int8(tmp_path), COMPUTE)
    assert (loaded.name, loaded.speeds) == ("openvino-f32", {})
    if not has_bf16():
        alone = load("auto", bundle(tmp_path / "2"), COMPUTE)
        assert (alone.name, alone.speeds) == ("openvino-f32", {})
