"""Evaluation with whitened embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from multigrain.bundle.folder import read
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate import run
from multigrain.evaluate.inference import whitened
from multigrain.events.records import EvaluationRecord
from multigrain.export import run as export
from multigrain.images.preprocess import preprocess
from multigrain.specs.base import WeightsSource
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.specs.export import ExportSpec
from multigrain.weights.restore import restore
from multigrain.whitening import read_whitening
from tests.data.datasets import write_dataset
from tests.evaluate.context import RecordingReporter, context, write_checkpoint

pytestmark = pytest.mark.mindspore


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of resnet18 at 16 px with a whitening; ``pictures/`` is beside ``models/``."""
    path = tmp_path_factory.mktemp("whitened")
    pictures = write_dataset(path / "pictures", classes=3, each=8)
    checkpoint = write_checkpoint(path / "checkpoints", ("c0", "c1", "c2"))
    spec = ExportSpec(model_name="m", formats=("onnx",), whitening_path=str(pictures))
    export(context(path, weights=checkpoint, export=spec))
    return path / "models" / "m" / "1"


def test_whitened_embeddings_equal_those_of_serving(bundle: Path) -> None:
    restored = restore(bundle)
    head = read(bundle).heads[0]
    assert head.whitening is not None
    files = sorted((bundle.parents[2] / "pictures").rglob("*.png"))[:5]
    images = np.stack([preprocess(file.read_bytes(), head.preprocessing) for file in files])
    phi, logits = (t.asnumpy() for t in whitened(restored, bundle, 0)(Tensor(images)))
    embedding, plain = (t.asnumpy() for t in restored.network(Tensor(images)))
    expected = read_whitening(bundle / head.whitening.file, 512).apply(embedding)
    np.testing.assert_allclose(phi, expected, atol=2e-3 * abs(expected).max())
    np.testing.assert_allclose(logits, plain, rtol=1e-5, atol=1e-5)


def test_copy_detection_uses_whitened_embeddings(bundle: Path) -> None:
    pictures = bundle.parents[2] / "pictures"
    metrics = []
    for whiten in (False, True):
        reporter = RecordingReporter()
        spec = EvaluationSpec(
            weights=WeightsSource(model="m"), dataset_path=str(pictures), whiten=whiten
        )
        path = bundle.parents[2] / f"job-{whiten}"
        assert not run(context(path, weights=bundle, evaluation=spec, reporter=reporter)).stopped
        (record,) = [r for r in reporter.records if isinstance(r, EvaluationRecord)]
        metrics.append(record.metrics)
    plain, white = metrics
    # The classifier uses the plain embedding, retrieval the whitened one.
    assert (white["top1"], white["loss"]) == (plain["top1"], pytest.approx(plain["loss"]))
    assert white["copy_map"] != plain["copy_map"]
    assert white["copy_map"] > 0.2  # 24 images: by chance 0.08


def test_a_resolution_without_whitening_is_refused(bundle: Path) -> None:
    pictures = bundle.parents[2] / "pictures"
    spec = EvaluationSpec(dataset_path=str(pictures), whiten=True, resolution=24)
    with pytest.raises(MultigrainError, match="no whitening at 24 px") as caught:
        run(context(bundle.parents[2] / "refused", weights=bundle, evaluation=spec))
    assert caught.value.kind is ErrorKind.INVALID_FIELD
    assert caught.value.violations[0].field == "spec.whiten"
