"""The export job with a real network."""

from __future__ import annotations

from pathlib import Path

import mindspore
import numpy as np
import onnxruntime
import pytest
from mindspore import Tensor, nn

from multigrain.bundle.folder import read
from multigrain.bundle.reference import Reference, read_reference
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate.search import l2_normalize
from multigrain.events.records import ArtifactRecord
from multigrain.export import graphs, run
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain.specs.export import ExportSpec
from multigrain.weights.restore import restore
from multigrain.whitening import read_whitening
from tests.data.datasets import write_dataset
from tests.evaluate.context import RecordingReporter, context, write_checkpoint
from tests.images.files import encode, noise

pytestmark = pytest.mark.mindspore

LABELS = ("a", "b c", "d")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports all formats; returns the folder with models/ and checkpoints/."""
    path = tmp_path_factory.mktemp("export")
    checkpoint = write_checkpoint(path / "checkpoints", LABELS, classes=4)
    reporter = RecordingReporter()
    spec = ExportSpec(model_name="m")
    outcome = run(context(path, weights=checkpoint, export=spec, reporter=reporter))
    assert not outcome.stopped
    (artifact,) = [r for r in reporter.records if isinstance(r, ArtifactRecord)]
    assert (artifact.model_name, artifact.model_version) == ("m", 1)
    assert artifact.files == (
        "labels.txt", "model.mindir", "model.onnx", "reference.safetensors", "weights.safetensors",
    )  # fmt: skip
    return path


def test_the_bundle_is_complete_and_has_a_manifest(exported: Path) -> None:
    folder = exported / "models" / "m" / "1"
    manifest = read(folder, verify=True)
    assert manifest.labels == LABELS
    assert manifest.model.classes == 4
    assert manifest.embedding_size == 512
    assert (manifest.source.job_id, manifest.source.step) == ("training", 30)
    assert manifest.metrics == {"top1": 0.5}
    (head,) = manifest.heads
    assert (head.resolution, head.gem_p, head.mindir, head.onnx, head.air) == (
        16, 3.0, "model.mindir", "model.onnx", "",
    )  # fmt: skip
    assert head.preprocessing.resize_short == 16  # the checkpoint's center_crop of 1
    assert (folder / "labels.txt").read_text() == "a\nb c\nd\n"
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (exported / "models" / "m").iterdir()] == ["1"]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_graphs_equal_the_checkpoint_on_served_images(exported: Path, batch: int) -> None:
    folder = exported / "models" / "m" / "1"
    preprocessing = read(folder).heads[0].preprocessing
    files = [encode(noise(30 + i, 20 + i, seed=i), "JPEG") for i in range(batch)]
    images = np.stack([preprocess(data, preprocessing) for data in files])
    network = restore(exported / "checkpoints" / "step-00000030").network
    expected, expected_logits = (t.asnumpy() for t in network(Tensor(images)))
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    by_onnx = session.run(["embedding", "logits"], {"images": images})
    graph = nn.GraphCell(mindspore.load(str(folder / "model.mindir")))
    by_mindir = [t.asnumpy() for t in graph(Tensor(images))]
    again = [t.asnumpy() for t in restore(folder).network(Tensor(images))]
    for embedding, logits in (by_onnx, by_mindir, again):
        assert embedding.shape == (batch, 512)
        np.testing.assert_allclose(l2_normalize(embedding), l2_normalize(expected), atol=1e-4)
        np.testing.assert_allclose(logits, expected_logits, atol=1e-4)


def test_the_bundle_has_reference_outputs(exported: Path) -> None:
    folder = exported / "models" / "m" / "1"
    (head,) = read(folder).heads
    reference = read_reference(folder / head.reference)
    images = reference.images(head.preprocessing)
    assert images.shape == (5, 3, 16, 16)
    assert reference.pixels.std(axis=(1, 2, 3)).min() > 20  # the outputs differ by image
    network = restore(exported / "checkpoints" / "step-00000030").network
    embedding, logits = (t.asnumpy() for t in network(Tensor(images)))
    np.testing.assert_allclose(reference.embedding, embedding, atol=1e-4)
    np.testing.assert_allclose(reference.logits, logits, atol=1e-4)
    assert np.ptp(l2_normalize(embedding), axis=0).max() > 1e-3


def test_the_next_export_takes_the_next_version(exported: Path) -> None:
    spec = ExportSpec(model_name="m", formats=("onnx",), resolution=24, gem_p=5.0)
    weights = exported / "checkpoints" / "step-00000030"
    run(context(exported, weights=weights, export=spec, job_id="job2"))
    manifest = read(exported / "models" / "m" / "2", verify=True)
    (head,) = manifest.heads
    assert (head.resolution, head.gem_p, head.mindir) == (24, 5.0, "")
    assert manifest.model.gem_p == 5.0


def test_an_existing_version_is_never_changed(exported: Path) -> None:
    spec = ExportSpec(model_name="m", version=1, formats=("onnx",))
    weights = exported / "checkpoints" / "step-00000030"
    with pytest.raises(MultigrainError, match="m@1 exists") as caught:
        run(context(exported, weights=weights, export=spec, job_id="another"))
    assert caught.value.kind is ErrorKind.ALREADY_EXISTS


def test_air_is_refused_off_ascend_before_anything_is_written(tmp_path: Path) -> None:
    spec = ExportSpec(model_name="m", formats=("onnx", "air"))
    with pytest.raises(MultigrainError, match="writes air on Ascend devices only") as caught:
        run(context(tmp_path, weights=tmp_path / "nothing", export=spec))
    assert caught.value.kind is ErrorKind.UNSUPPORTED
    assert not (tmp_path / "models").exists()


def test_a_graph_with_different_outputs_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", LABELS)
    original = graphs.reference

    def other(network: nn.Cell, preprocessing: Preprocessing) -> Reference:
        right = original(network, preprocessing)
        embedding = right.embedding.copy()
        embedding[:, 0] += 0.01 * np.linalg.norm(embedding, axis=1)
        return Reference(right.pixels, embedding, right.logits)

    monkeypatch.setattr(graphs, "reference", other)
    spec = ExportSpec(model_name="m", formats=("onnx",))
    with pytest.raises(MultigrainError, match=r"outputs of model\.onnx differ") as caught:
        run(context(tmp_path, weights=checkpoint, export=spec))
    assert caught.value.kind is ErrorKind.INTERNAL
    assert not (tmp_path / "models" / "m").exists()


def test_a_stop_request_leaves_no_files(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", LABELS)
    spec = ExportSpec(model_name="m")
    reporter = RecordingReporter(stop_after=0)
    assert run(context(tmp_path, weights=checkpoint, export=spec, reporter=reporter)).stopped
    assert not (tmp_path / "models" / "m").exists()


def test_each_resolution_of_a_bundle_has_a_whitening(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", LABELS)
    pictures = write_dataset(tmp_path / "pictures", classes=2, each=12)
    (pictures / "loose.png").write_bytes((pictures / "c0" / "000.png").read_bytes())
    (pictures / "c1" / "011.png").write_bytes(b"")
    spec = ExportSpec.model_validate(
        {
            "model_name": "m",
            "formats": ("onnx",),
            "resolutions": ({"resolution": 24, "gem_p": 5.0}, {"gem_p": 1.0}),
            "whitening_path": str(pictures),
        }
    )
    reporter = RecordingReporter()
    run(context(tmp_path, weights=checkpoint, export=spec, reporter=reporter))
    folder = tmp_path / "models" / "m" / "1"
    manifest = read(folder, verify=True)
    assert [(h.resolution, h.gem_p, h.onnx) for h in manifest.heads] == [
        (24, 5.0, "model.onnx"), (16, 1.0, "model-16.onnx"),
    ]  # fmt: skip
    assert manifest.model.gem_p == 5.0
    warnings = [r.message for r in reporter.records if getattr(r, "level", "") == "WARNING"]
    assert sum("c1/011.png" in message for message in warnings) == 2
    assert sum("fewer than the descriptor's 513 dimensions" in m for m in warnings) == 2
    readable = [p for p in sorted(pictures.rglob("*.png")) if p.stat().st_size]
    assert len(readable) == 24
    for head in manifest.heads:
        assert head.whitening is not None
        assert (head.whitening.size, head.whitening.images) == (513, 24)
        images = np.stack([preprocess(p.read_bytes(), head.preprocessing) for p in readable])
        session = onnxruntime.InferenceSession(
            str(folder / head.onnx), providers=["CPUExecutionProvider"]
        )
        embedding, logits = session.run(["embedding", "logits"], {"images": images})
        network = restore(folder, resolution=head.resolution).network
        assert network.pool.value == head.gem_p
        by_network = network(Tensor(images))[0].asnumpy()
        np.testing.assert_allclose(l2_normalize(by_network), l2_normalize(embedding), atol=1e-4)
        # By the definition: [e; 1] at length 1, minus its mean.
        u = np.concatenate([embedding, np.ones((24, 1))], axis=1).astype(np.float64)
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        stored = read_whitening(folder / head.whitening.file, 512)
        np.testing.assert_allclose(stored.mean, u.mean(0), atol=1e-5)
        phi = stored.apply(embedding)
        assert abs(phi.mean(0)).max() < 1e-2 * abs(phi).max()
        scores = phi @ stored.weight.T + stored.bias
        np.testing.assert_array_equal(np.argsort(-scores), np.argsort(-logits))


def test_a_duplicate_of_the_training_resolution_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", LABELS)
    resolutions = ({"resolution": 16}, {"gem_p": 2.0})
    spec = ExportSpec.model_validate({"model_name": "m", "resolutions": resolutions})
    with pytest.raises(MultigrainError, match="has 16 twice") as caught:
        run(context(tmp_path, weights=checkpoint, export=spec))
    assert caught.value.violations[0].field == "spec.resolutions"
    assert not (tmp_path / "models" / "m").exists()


def test_a_whitening_folder_without_images_fails_before_the_export(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", LABELS)
    (tmp_path / "empty").mkdir()
    spec = ExportSpec(model_name="m", whitening_path=str(tmp_path / "empty"))
    reporter = RecordingReporter()
    with pytest.raises(MultigrainError, match="has no images") as caught:
        run(context(tmp_path, weights=checkpoint, export=spec, reporter=reporter))
    assert caught.value.kind is ErrorKind.DATASET
    assert not reporter.records


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trunk", "gem_p"), [("resnet50", 3.0), ("se_resnet50", float("inf")), ("resnet34", 1.0)]
)
def test_every_trunk_and_pooling_is_exported(tmp_path: Path, trunk: str, gem_p: float) -> None:
    from safetensors.numpy import save_file

    from multigrain.model.multigrain import build_model
    from multigrain.model.state import model_state
    from multigrain.specs.training import ModelSpec

    spec = ModelSpec.model_validate({"trunk": trunk, "gem_p": gem_p, "zero_init_residual": False})
    save_file(model_state(build_model(spec, 10)), tmp_path / "w.safetensors")
    run(
        context(
            tmp_path,
            weights=tmp_path / "w.safetensors",
            export=ExportSpec(model_name="m", trunk=trunk, resolution=64),
        )
    )
    assert read(tmp_path / "models" / "m" / "1", verify=True).heads[0].gem_p == gem_p
