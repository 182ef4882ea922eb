"""The task "gem_p" with a real network."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import save_file

from multigrain.data.image_folder import scan
from multigrain.errors import MultigrainError
from multigrain.evaluate import run
from multigrain.evaluate.distortion import distort
from multigrain.evaluate.gem_p import ExponentScore, best_score
from multigrain.evaluate.retrieval import average_precision
from multigrain.evaluate.search import l2_normalize
from multigrain.events.records import EvaluationRecord, LogRecord
from multigrain.images.decode import decode_image
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess, preprocess_image
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.weights.restore import restore
from tests.data.datasets import write_dataset
from tests.evaluate.context import RecordingReporter, context, write_checkpoint

pytestmark = pytest.mark.mindspore

LABELS = ("c0", "c1", "c2")


def spec_of(root: Path, **exponent: Any) -> EvaluationSpec:
    return EvaluationSpec.model_validate(
        {
            "dataset_path": str(root),
            "tasks": ("gem_p",),
            "resolution": 24,
            "batch_size": 5,
            "seed": 11,
            "exponent": exponent,
        }
    )


def record_of(reporter: RecordingReporter) -> EvaluationRecord:
    (record,) = [r for r in reporter.records if isinstance(r, EvaluationRecord)]
    return record


def test_the_best_mean_score_wins_and_the_smallest_of_equals() -> None:
    scores = [
        ExponentScore(1, top1=0.9, loss=0.1, retrieval=0.5),
        ExponentScore(4, top1=0.8, loss=0.1, retrieval=0.8),
        ExponentScore(3, top1=0.7, loss=0.1, retrieval=0.9),
        ExponentScore(5, top1=0.6, loss=0.1, retrieval=0.9),
    ]
    assert [score.score for score in scores] == pytest.approx([0.7, 0.8, 0.8, 0.75])
    assert best_score(scores).p == 3
    assert best_score([ExponentScore(2, 0.5, 1.0), ExponentScore(9, 0.6, 1.0)]).p == 9


def test_candidates_scores_equal_a_manual_computation(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", classes=3, each=3)
    (root / "c2" / "001.png").write_bytes(b"")
    checkpoint = write_checkpoint(tmp_path / "checkpoints", LABELS)
    reporter = RecordingReporter()
    spec = spec_of(root, candidates=(1.0, 6.0), views=3, images_per_class=3)
    ctx = context(tmp_path, weights=checkpoint, evaluation=spec, reporter=reporter)
    assert not run(ctx).stopped
    record = record_of(reporter)
    assert (record.images, record.unreadable, record.resolution) == (24, 3, 24)
    warnings = [r.fields["path"] for r in reporter.records if isinstance(r, LogRecord)]
    assert warnings == ["c2/001.png"]

    folder = scan(root)
    for p in (1.0, 6.0):
        restored = restore(checkpoint, gem_p=p)
        preprocessing = restored.preprocessing(24)
        images, labels, sources = [], [], []
        for item in range(27):
            if folder.paths[item // 3] == "c2/001.png":
                continue
            image = decode_image(folder.read(item // 3))
            copy = distort(image, Random(11 << 64 | item))
            images.append(preprocess_image(copy, preprocessing))
            labels.append(folder.labels[item // 3])
            sources.append(item // 3)
        embedding, logits = (t.asnumpy() for t in restored.network(Tensor(np.stack(images))))
        top1 = np.mean(logits.argmax(1) == labels)
        similarity = l2_normalize(embedding) @ l2_normalize(embedding).T
        precisions = []
        for query in range(24):
            order = [i for i in np.argsort(-similarity[query], kind="stable") if i != query]
            ranks = [r for r, i in enumerate(order) if sources[i] == sources[query]]
            precisions.append(average_precision(ranks, 2))
        assert record.metrics[f"gem_p_{p:g}_top1"] == pytest.approx(top1)
        assert record.metrics[f"gem_p_{p:g}_map"] == pytest.approx(np.mean(precisions), abs=1e-3)
    scores = {p: record.metrics[f"gem_p_{p:g}_score"] for p in (1.0, 6.0)}
    assert record.metrics["gem_p"] == max(scores, key=lambda p: scores[p])
    written = json.loads((ctx.folder.results / "metrics.json").read_text())
    assert written["metrics"] == record.metrics
    assert [candidate["p"] for candidate in written["candidates"]] == [1.0, 6.0]


def made_for(p: float, checkpoint: Path, root: Path, path: Path) -> None:
    """Weights whose classifier is fitted to the images at this p by least squares."""
    restored = restore(checkpoint, gem_p=p)
    folder = scan(root)
    images = np.stack([preprocess(folder.read(i), Preprocessing.standard(24)) for i in range(18)])
    embedding = restored.network(Tensor(images))[0].asnumpy().astype(np.float64)
    wanted = 4 * np.eye(3)[folder.labels]
    mean = embedding.mean(0)
    weight = np.linalg.pinv(embedding - mean, rcond=1e-2) @ (wanted - wanted.mean(0))
    state = {name: np.asarray(value) for name, value in restored.state.items()}
    state["classifier.weight"] = np.ascontiguousarray(weight.T.astype(np.float32))
    state["classifier.bias"] = (wanted.mean(0) - mean @ weight).astype(np.float32)
    save_file(state, path)


def test_finetuning_moves_toward_the_classifiers_exponent(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", classes=3, each=6)
    checkpoint = write_checkpoint(tmp_path / "checkpoints", LABELS)
    bare = tmp_path / "bare.safetensors"
    made_for(6.0, checkpoint, root, bare)
    reporter = RecordingReporter()
    spec = spec_of(root, method="finetune", learning_rate=1.0).model_copy(update={"gem_p": 3.0})
    ctx = context(tmp_path, weights=bare, evaluation=spec, reporter=reporter)
    assert not run(ctx).stopped
    metrics = record_of(reporter).metrics
    assert metrics["gem_p_start"] == 3.0
    assert 3.5 < metrics["gem_p"] < 8.0
    assert metrics["loss"] < 0.8 * metrics["gem_p_start_loss"]
    restored = restore(bare, gem_p=metrics["gem_p"])
    folder = scan(root)
    preprocessing = restored.preprocessing(24)
    images = np.stack([preprocess(folder.read(i), preprocessing) for i in range(len(folder))])
    logits = restored.network(Tensor(images))[1].asnumpy().astype(np.float64)
    chosen = logits[np.arange(len(folder)), folder.labels]
    loss = np.mean(np.log(np.exp(logits).sum(1)) - chosen)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["top1"] == pytest.approx(np.mean(logits.argmax(1) == folder.labels))


def test_an_infinite_exponent_cannot_be_finetuned(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", classes=3, each=2)
    checkpoint = write_checkpoint(tmp_path / "checkpoints", LABELS, gem_p=float("inf"))
    spec = spec_of(root, method="finetune")
    with pytest.raises(MultigrainError, match="infinite") as caught:
        run(context(tmp_path, weights=checkpoint, evaluation=spec))
    assert caught.value.violations[0].field == "spec.gem_p"


@pytest.mark.parametrize("method", ["search", "finetune"])
def test_a_stop_request_ends_the_job(tmp_path: Path, method: str) -> None:
    root = write_dataset(tmp_path / "data", classes=3, each=4)
    checkpoint = write_checkpoint(tmp_path / "checkpoints", LABELS)
    reporter = RecordingReporter(stop_after=2)
    spec = spec_of(root, method=method, candidates=(1.0, 3.0))
    ctx = context(tmp_path, weights=checkpoint, evaluation=spec, reporter=reporter)
    assert run(ctx).stopped
    assert not any(isinstance(record, EvaluationRecord) for record in reporter.records)
