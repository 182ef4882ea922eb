"""Choice of the runtime; none is used whose outputs differ from the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest

from multigrain.bundle.folder import read
from multigrain.bundle.reference import MIN_COSINE, read_reference, write_reference
from multigrain.engine.runtimes import choice
from multigrain.engine.runtimes.base import Bundle, Compute
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


def test_auto_uses_bfloat16_if_the_cpu_has_it_and_reports_the_cosine(tmp_path: Path) -> None:
    loaded = load("auto", bundle(tmp_path), COMPUTE)
    (runtime,) = loaded.runtimes.values()
    precision = "bf16" if has_bf16() else "f32"
    assert (runtime.name.split()[0], runtime.precision) == ("openvino", precision)
    assert runtime.name.endswith(f"cpu {precision}")
    if has_bf16():
        assert loaded.reason.startswith(
            "auto: the fastest on this device; cosine with the reference "
        )
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
