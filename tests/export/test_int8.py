"""Quantized graphs: written with scores, served, and refused if they are inaccurate."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from multigrain.bundle.folder import read
from multigrain.bundle.manifest import Int8Entry
from multigrain.bundle.reference import (
    MIN_COSINE,
    Reference,
    least_int8_cosine,
    pattern_pixels,
    read_reference,
)
from multigrain.engine.runtimes.base import Bundle, Compute
from multigrain.engine.runtimes.choice import load
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.export import int8, int8_images, run
from multigrain.export.int8 import StopRequested, write_int8
from multigrain.export.int8_images import Int8Images, NoInt8, find_images
from multigrain.export.int8_images import int8_images as images_of_path
from multigrain.images.preprocess import normalize, preprocess
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


def written(folder: Path, images: Int8Images, **options: object) -> Int8Entry | NoInt8:
    """Quantizes the graph of a bundle."""
    head = read(folder).heads[0]
    onnx, path = folder / "model.onnx", folder / "model-int8.xml"
    return write_int8(onnx, path, images, head.preprocessing, lambda: None, **options)


def quantized(path: Path, images: Int8Images) -> Bundle:
    """Writes a bundle with a graph quantized with these images."""
    folder = write_bundle(path, network=TinyNetwork(3, repeat=1), referenced=True)
    manifest = read(folder)
    head = manifest.heads[0]
    entry = written(folder, images)
    assert isinstance(entry, Int8Entry)
    heads = (head.model_copy(update={"int8": entry}),)
    return Bundle(folder, manifest.model_copy(update={"heads": heads}))


def test_calibration_and_evaluation_images_are_disjoint(pictures: Path) -> None:
    images = images_of_path(spec(pictures, int8_images=10), LABELS)
    chosen, other = images.calibration.indices, images.evaluation.indices
    assert (len(chosen), len(other)) == (10, 15)
    assert not set(chosen) & set(other)
    again = images_of_path(spec(pictures, int8_images=10), LABELS)
    assert (again.calibration.indices, again.evaluation.indices) == (chosen, other)
    for index, path in enumerate(images.evaluation.folder.paths):
        top = path.split("/")[0]
        label = images.evaluation.labels[index]
        assert label == (LABELS.index(top) if top in LABELS else -1)
    # Half of them at most.
    assert len(images_of_path(spec(pictures), LABELS).calibration.indices) == 12


def test_few_images_of_many_classes_are_measured_in_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(noise(8, 8), "PNG")
    for number in range(10):
        (tmp_path / str(number)).mkdir()
        for image in range(6):
            (tmp_path / str(number) / f"{image}.png").write_bytes(data)
    monkeypatch.setattr(int8_images, "_EVALUATED", 12)
    images = images_of_path(spec(tmp_path, int8_images=1), ())
    sample = images.evaluation
    groups = [sample.groups[index] for index in sample.indices]
    assert sorted(groups.count(group) for group in set(groups)) == [4, 4, 4]


def test_auto_with_the_images_of_the_training_run(pictures: Path, tmp_path: Path) -> None:
    def found(train: str = "", val: str = "", **fields: object) -> Int8Images | NoInt8:
        request = context(tmp_path, weights=tmp_path, export=ExportSpec(model_name="m")).request
        request = request.model_copy(update={"train_path": train, "val_path": val})
        return find_images(request, ExportSpec(model_name="m", **fields), LABELS)

    small = found(str(pictures))
    assert isinstance(small, NoInt8)
    assert "has 25 images, fewer than 32" in small.reason
    for number in range(10):
        data = (pictures / LABELS[0] / "0.png").read_bytes()
        (tmp_path / "train" / LABELS[0]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / LABELS[0] / f"{number}.png").write_bytes(data)
    for number in range(30):
        (tmp_path / "train" / f"{number}.png").write_bytes(data)
    train = found(str(tmp_path / "train"))
    assert isinstance(train, Int8Images)
    assert train.held_out == "training"
    assert not set(train.calibration.indices) & set(train.evaluation.indices)
    both = found(str(tmp_path / "train"), str(pictures), int8_images=7)
    assert isinstance(both, Int8Images)
    assert both.held_out == "validation"
    assert (len(both.calibration.indices), len(both.evaluation.indices)) == (7, 25)
    assert [folder.root for folder in both.folders] == [tmp_path / "train", pictures]

    for none, why in (
        (found(), "do not come from a training job"),
        (found(str(tmp_path / "gone")), "does not exist: give a folder of images; or give int8_p"),
        (found(str(pictures), formats=("mindir",)), "spec.formats leaves out"),
        (found(str(pictures), int8="off"), ""),
    ):
        assert isinstance(none, NoInt8)
        assert why in none.reason
        assert bool(why) == bool(none.reason)


def test_the_manifest_has_the_scores_of_the_quantized_graph(pictures: Path, tmp_path: Path) -> None:
    images = images_of_path(spec(pictures, int8_images=12), LABELS)
    bundle = quantized(tmp_path, images)
    head = bundle.manifest.heads[0]
    assert set(head.named_files) >= {"model-int8.xml", "model-int8.bin"}
    entry = head.int8
    assert entry is not None
    assert entry.calibration_images + entry.images == 24  # all except the damaged one
    compute = Compute(threads=1, max_batch=8)
    loaded = load("openvino-int8", bundle, compute)
    assert loaded.runtimes[32].precision == "int8"
    assert loaded.reason.startswith("requested; cosine with the reference 0.99")

    # Recomputes the scores one image at a time.
    network = TinyNetwork(3, repeat=1)
    cosines, same, labeled, hits = [], [], 0, np.zeros((2, 2))
    sample = images.evaluation
    for index in sample.indices:
        try:
            image = preprocess(sample.folder.read(index), head.preprocessing)
        except MultigrainError:
            continue
        right = network.embed(image)
        ours = loaded.runtimes[32].run(image[None])
        cosines.append(
            right @ ours.embedding[0] / np.linalg.norm(right) / np.linalg.norm(ours.embedding)
        )
        scores = (network.logits(right), ours.logits[0])
        same.append(scores[0].argmax() == scores[1].argmax())
        if sample.labels[index] >= 0:
            labeled += 1
            for graph in (0, 1):
                # With five classes, top-5 is always correct.
                hits[graph] += scores[graph].argmax() == sample.labels[index], 1
    assert entry.images == len(cosines)
    assert entry.cosine_mean == pytest.approx(np.mean(cosines), abs=1e-3)
    assert entry.cosine_min == pytest.approx(min(cosines), abs=1e-3)
    assert entry.cosine_p1 == pytest.approx(np.percentile(cosines, 1), abs=1e-3)
    assert entry.held_out == "int8_path"
    assert entry.same_top1 == pytest.approx(np.mean(same), abs=1 / len(same) + 1e-9)
    assert entry.labelled_images == labeled > 0
    assert entry.f32 is not None
    assert entry.int8 is not None
    assert entry.f32.top1 == pytest.approx(hits[0, 0] / labeled)
    assert entry.int8.top1 == pytest.approx(hits[1, 0] / labeled, abs=1 / labeled + 1e-9)
    assert entry.f32.top5 == entry.int8.top5 == 1.0

    # The float graph remains available.
    assert load("openvino-f32", bundle, compute).runtimes[32].precision == "f32"


def test_a_poor_quantization_is_left_out_with_the_reason(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_bundle(tmp_path, network=TinyNetwork(3, repeat=1), referenced=True)
    images = images_of_path(spec(pictures, int8_images=12), LABELS)
    before = sorted(path.name for path in folder.iterdir())
    # Outputs that engines would compare with, of another network.
    pixels = pattern_pixels(32, 3)
    other = TinyNetwork(4, repeat=1)
    rows = [other.embed(preprocess_pixels(folder, one)) for one in pixels]
    reference = Reference(pixels, np.stack(rows), np.stack([other.logits(row) for row in rows]))
    refused = written(folder, images, reference=reference)
    assert isinstance(refused, NoInt8)
    assert "with the bundle's reference outputs, less than 0.95" in refused.reason

    monkeypatch.setitem(MIN_COSINE, "int8", 1.1)
    found = written(folder, images)
    assert isinstance(found, NoInt8)
    assert re.search(
        r"has a mean cosine of 0\.9\d+, less than 1\.1 \(measured on 1\d int8_path images\)",
        found.reason,
    )
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_network_that_nncf_cannot_quantize_is_exported_without_int8(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nncf

    def fail(*_: object, **__: object) -> None:
        raise nncf.UnsupportedModelError("an operator")

    monkeypatch.setattr(nncf, "quantize", fail)
    folder = write_bundle(tmp_path, network=TinyNetwork(3, repeat=1), referenced=True)
    found = written(folder, images_of_path(spec(pictures), LABELS))
    assert isinstance(found, NoInt8)
    assert "NNCF cannot quantize the network (UnsupportedModelError: an operator)" in found.reason


def test_a_stop_request_ends_the_calibration(pictures: Path, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, network=TinyNetwork(3, repeat=1), referenced=True)
    images = images_of_path(spec(pictures), LABELS)
    calls = []

    def progress() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise StopRequested

    with pytest.raises(StopRequested):
        write_int8(
            folder / "model.onnx",
            folder / "model-int8.xml",
            images,
            read(folder).heads[0].preprocessing,
            progress,
        )
    assert len(calls) == 3


def preprocess_pixels(folder: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    p = read(folder).heads[0].preprocessing
    return normalize(pixels, p.mean, p.std)


def test_invalid_quantization_requests_are_refused_early(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MultigrainError, match=r"spec\.formats.*must include onnx"):
        images_of_path(spec(pictures, formats=("mindir",)), LABELS)
    (tmp_path / "one.png").write_bytes(encode(noise(8, 8), "PNG"))
    with pytest.raises(MultigrainError, match="has one image") as caught:
        images_of_path(spec(tmp_path), LABELS)
    assert caught.value.kind is ErrorKind.DATASET
    monkeypatch.setattr(int8_images, "find_spec", lambda name: None)
    with pytest.raises(MultigrainError, match=r"pip install 'multigrain\[server\]'") as caught:
        images_of_path(spec(pictures), LABELS)
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
    quantized(tmp_path, images_of_path(spec(pictures, int8_images=4), LABELS))
    threads = [model.get_property("INFERENCE_NUM_THREADS") for model in compiled]
    # Of statistics and bias correction, and the two graphs that are compared.
    assert len(threads) > 3
    assert set(threads) == {1}
    assert Core.compile_model is recorded


def test_an_engine_must_agree_as_well_as_the_exporting_machine(
    pictures: Path, tmp_path: Path
) -> None:
    bundle = quantized(tmp_path, images_of_path(spec(pictures, int8_images=12), LABELS))
    head = bundle.manifest.heads[0]
    reference = read_reference(bundle.path / head.reference)
    entry = written(bundle.path, images_of_path(spec(pictures), LABELS), reference=reference)
    assert isinstance(entry, Int8Entry)
    assert 0.99 < entry.reference_cosine < 1

    def loaded(exported: float) -> str:
        changed = head.model_copy(
            update={"int8": entry.model_copy(update={"reference_cosine": exported})}
        )
        manifest = bundle.manifest.model_copy(update={"heads": (changed,)})
        compute = Compute(threads=1, max_batch=4)
        return load("openvino-int8", Bundle(bundle.path, manifest), compute).reason

    assert "requested" in loaded(entry.reference_cosine)
    # As if the exporting machine had computed something else.
    with pytest.raises(MultigrainError, match=r"the limit for int8 is a cosine of \d"):
        loaded(entry.reference_cosine + 0.0051)
    assert least_int8_cosine(0.98) == pytest.approx(0.975)
    # No export writes such a graph: the manifest was changed.
    assert least_int8_cosine(0.1) == pytest.approx(0.945)
    assert least_int8_cosine(0.0) == MIN_COSINE["int8"]
