"""Quantized graphs: written with scores, served, and refused if they are inaccurate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multigrain.bundle.folder import read
from multigrain.engine.runtimes.base import Bundle, Compute
from multigrain.engine.runtimes.choice import load
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.export import int8, run
from multigrain.export.int8 import Int8Images, int8_images, write_int8
from multigrain.images.preprocess import preprocess
from multigrain.machine import Cpus
from multigrain.specs.export import ExportSpec
from tests.engine.bundles import TinyNetwork, write_bundle
from tests.evaluate.context import context, write_checkpoint
from tests.images.files import encode, noise

pytest.importorskip("nncf")

LABELS = tuple(f"label {number}" for number in range(5))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for label in (*LABELS[:2], "elsewhere"):
        (root / label).mkdir()
        for number in range(8):
            picture = noise(6, 5, seed=number + 100 * ord(label[-1]))
            data = encode(picture.resize((40, 36)), "PNG")
            (root / label / f"{number}.png").write_bytes(data)
    (root / "elsewhere" / "broken.png").write_bytes(b"")
    return root


def spec(pictures: Path, **fields: object) -> ExportSpec:
    return ExportSpec(model_name="m", int8_path=str(pictures), **fields)


def quantized(path: Path, images: Int8Images) -> Bundle:
    """Writes a bundle with a graph quantized with these images."""
    folder = write_bundle(path, network=TinyNetwork(3, repeat=1), referenced=True)
    manifest = read(folder)
    head = manifest.heads[0]
    entry = write_int8(
        folder / "model.onnx", folder / "model-int8.xml", images, head.preprocessing, lambda: None
    )
    heads = (head.model_copy(update={"int8": entry}),)
    return Bundle(folder, manifest.model_copy(update={"heads": heads}))


def test_calibration_and_evaluation_images_are_disjoint(pictures: Path) -> None:
    images = int8_images(spec(pictures, int8_images=10), LABELS)
    assert len(images.calibration) == 10
    assert len(images.evaluation) == 15
    assert not set(images.calibration) & set(images.evaluation)
    again = int8_images(spec(pictures, int8_images=10), LABELS)
    assert (again.calibration, again.evaluation) == (images.calibration, images.evaluation)
    for index, path in enumerate(images.folder.paths):
        top = path.split("/")[0]
        assert images.labels[index] == (LABELS.index(top) if top in LABELS else -1)
    assert len(int8_images(spec(pictures), LABELS).calibration) == 12  # half of them at most


def test_auto_selects_the_quantized_graph_and_the_manifest_has_its_scores(
    pictures: Path, tmp_path: Path
) -> None:
    images = int8_images(spec(pictures, int8_images=12), LABELS)
    bundle = quantized(tmp_path, images)
    head = bundle.manifest.heads[0]
    assert set(head.named_files) >= {"model-int8.xml", "model-int8.bin"}
    entry = head.int8
    assert entry is not None
    assert entry.calibration_images + entry.images == 24  # all except the damaged one
    compute = Compute(threads=1, max_batch=8)
    loaded = load("auto", bundle, compute)
    assert loaded.runtimes[32].precision == "int8"
    assert loaded.reason.startswith(
        "auto: the fastest on this device; cosine with the reference 0.99"
    )

    # Recomputes the scores one image at a time.
    network = TinyNetwork(3, repeat=1)
    cosines, same, labeled, hits = [], [], 0, np.zeros((2, 2))
    for index in images.evaluation:
        try:
            image = preprocess(images.folder.read(index), head.preprocessing)
        except MultigrainError:
            continue
        right = network.embed(image)
        ours = loaded.runtimes[32].run(image[None])
        cosines.append(
            right @ ours.embedding[0] / np.linalg.norm(right) / np.linalg.norm(ours.embedding)
        )
        scores = (network.logits(right), ours.logits[0])
        same.append(scores[0].argmax() == scores[1].argmax())
        if images.labels[index] >= 0:
            labeled += 1
            for graph in (0, 1):
                # With five classes, top-5 is always correct.
                hits[graph] += scores[graph].argmax() == images.labels[index], 1
    assert entry.images == len(cosines)
    assert entry.cosine_mean == pytest.approx(np.mean(cosines), abs=1e-3)
    assert entry.cosine_min == pytest.approx(min(cosines), abs=1e-3)
    assert entry.same_top1 == pytest.approx(np.mean(same), abs=1 / len(same) + 1e-9)
    assert entry.labelled_images == labeled > 0
    assert entry.f32 is not None
    assert entry.int8 is not None
    assert entry.f32.top1 == pytest.approx(hits[0, 0] / labeled)
    assert entry.int8.top1 == pytest.approx(hits[1, 0] / labeled, abs=1 / labeled + 1e-9)
    assert entry.f32.top5 == entry.int8.top5 == 1.0

    # The float graph remains available.
    assert load("openvino-f32", bundle, compute).runtimes[32].precision == "f32"


def test_a_poor_quantization_is_refused(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(int8.MIN_COSINE, "int8", 1.1)
    with pytest.raises(
        MultigrainError, match=r"mean cosine similarity of 0\.99.*less than 1\.1"
    ) as caught:
        quantized(tmp_path, int8_images(spec(pictures, int8_images=12), LABELS))
    assert caught.value.kind is ErrorKind.UNSUPPORTED


def test_invalid_quantization_requests_are_refused_early(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MultigrainError, match=r"spec\.formats.*must include onnx"):
        int8_images(spec(pictures, formats=("mindir",)), LABELS)
    (tmp_path / "one.png").write_bytes(encode(noise(8, 8), "PNG"))
    with pytest.raises(MultigrainError, match="has one image") as caught:
        int8_images(spec(tmp_path), LABELS)
    assert caught.value.kind is ErrorKind.DATASET
    monkeypatch.setattr(int8, "find_spec", lambda name: None)
    with pytest.raises(MultigrainError, match=r"pip install 'multigrain\[int8\]'") as caught:
        int8_images(spec(pictures), LABELS)
    assert caught.value.kind is ErrorKind.UNSUPPORTED


@pytest.mark.mindspore
def test_an_export_writes_the_quantized_graph(pictures: Path, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", LABELS)
    export_spec = spec(pictures, formats=("onnx",), int8_images=10)
    run(context(tmp_path, weights=checkpoint, export=export_spec))
    folder = tmp_path / "models" / "m" / "1"
    manifest = read(folder, verify=True)
    entry = manifest.heads[0].int8
    assert entry is not None
    assert {"model-int8.xml", "model-int8.bin", "model.onnx"} <= set(manifest.files)
    assert entry.cosine_mean > 0.99
    assert 0 < entry.labelled_images < entry.images
    # Fused with its convolution: nothing is quantized between the two.
    assert "BatchNormInference" not in (folder / "model-int8.xml").read_text()
    loaded = load("openvino-int8", Bundle(folder, manifest), Compute(threads=1, max_batch=4))
    assert loaded.runtimes[16].precision == "int8"


def test_calibration_uses_no_more_threads_than_a_container_has_cpus(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openvino import CompiledModel, Core

    compiled: list[CompiledModel] = []
    compile_model = Core.compile_model

    def recorded(*arguments: object, **options: object) -> CompiledModel:
        compiled.append(compile_model(*arguments, **options))
        return compiled[-1]

    monkeypatch.setattr(Core, "compile_model", recorded)
    monkeypatch.setattr(int8, "cpus", lambda: Cpus(machine=64, affinity=64, quota=0.5))
    quantized(tmp_path, int8_images(spec(pictures, int8_images=4), LABELS))
    threads = [model.get_property("INFERENCE_NUM_THREADS") for model in compiled]
    # Of statistics and bias correction, and the two graphs that are compared.
    assert len(threads) > 3
    assert set(threads) == {1}
    assert Core.compile_model is recorded
