"""The evaluation job with a real network."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate import run
from multigrain.events.records import EvaluationRecord, LogRecord, encode_json, record_fields
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.weights.restore import restore
from tests.data.datasets import write_dataset
from tests.evaluate.context import RecordingReporter, context, write_checkpoint
from tests.images.files import encode, noise
from tests.peers.names import pytorch_shapes


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.mindspore
def test_both_tasks_write_metrics_events_and_files(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", classes=3, each=4)
    (root / "c2" / "001.png").write_bytes(b"")
    checkpoint = write_checkpoint(tmp_path / "checkpoints", ("c0", "c1", "c2"))
    reporter = RecordingReporter()
    spec = EvaluationSpec(dataset_path=str(root), batch_size=5)
    ctx = context(tmp_path, weights=checkpoint, evaluation=spec, reporter=reporter)
    outcome = run(ctx)
    assert not outcome.stopped
    logs = [record for record in reporter.records if isinstance(record, LogRecord)]
    assert [log.fields["path"] for log in logs] == ["c2/001.png"]
    (record,) = [r for r in reporter.records if isinstance(r, EvaluationRecord)]
    assert set(record.metrics) == {"top1", "top5", "loss", "copy_map", "copy_recall1"}
    assert (record.step, record.images, record.unreadable, record.resolution) == (30, 11, 1, 16)
    assert record.metrics["top5"] == 1.0
    assert reporter.alive_calls >= 6
    figures = json.loads((ctx.folder.results / "metrics.json").read_text())
    assert figures["metrics"] == record.metrics
    images = rows(ctx.folder.results / "images.csv")
    assert len(images) == 12
    assert [image["path"] for image in images if image["read"] == "0"] == ["c2/001.png"]
    read = [image for image in images if image["read"] == "1"]
    right = np.mean([image["predicted"] == image["class"] for image in read])
    assert right == pytest.approx(record.metrics["top1"])
    assert np.mean([float(i["copy_ap"]) for i in read]) == pytest.approx(record.metrics["copy_map"])
    assert all(1 / 3 < float(image["probability"]) <= 1 for image in read)
    classes = rows(ctx.folder.results / "classes.csv")
    for row in classes:
        of_class = [image for image in read if image["class"] == row["class"]]
        assert int(row["images"]) == len(of_class)
        assert int(row["recognised"]) == sum(i["predicted"] == i["class"] for i in of_class)
    confusion = rows(ctx.folder.results / "confusion.csv")
    assert sum(int(row[name]) for row in confusion for name in ("c0", "c1", "c2")) == 11


@pytest.mark.mindspore
def test_names_that_are_not_text_and_left_out_files_are_reported(tmp_path: Path) -> None:
    """Latin-1, ESC, a line end and a direction mark in file names; names in two Unicode forms."""
    root = write_dataset(tmp_path / "data", classes=1, each=2)
    data = (root / "c0" / "000.png").read_bytes()
    decomposed = root / "cafe\u0301"
    decomposed.mkdir()
    names = (b"latin\xe9.png", b"esc\x1b[31m.png", b"line\nend.png", "\u202egnp.png".encode())
    for name in names:
        (decomposed / os.fsdecode(name)).write_bytes(data)
        (root / "c0" / os.fsdecode(b"bad-" + name)).write_bytes(b"")
    for side in ("@eaDir/000.png/SYNOPHOTO_THUMB_M.jpg", "lost+found/x", "c0/notes.txt"):
        (root / side).parent.mkdir(parents=True, exist_ok=True)
        (root / side).write_bytes(data)
    (root / "c0" / "gone.png").symlink_to("nowhere")
    checkpoint = write_checkpoint(tmp_path / "checkpoints", ("c0", "caf\u00e9"))
    reporter = RecordingReporter()
    spec = EvaluationSpec(dataset_path=str(root), tasks=("classification",))
    ctx = context(tmp_path, weights=checkpoint, evaluation=spec, reporter=reporter)
    run(ctx)
    for record in reporter.records:
        encode_json({record.key: record_fields(record)}).decode().encode()
    logs = [record for record in reporter.records if isinstance(record, LogRecord)]
    assert all(log.message.isprintable() for log in logs)
    assert (logs[0].level, logs[0].fields) == (
        "WARNING",
        {"broken_link": "1", "other": "1", "system": "2"},
    )
    assert "1 link that cannot be followed (c0/gone.png)" in logs[0].message
    stored = [r"latin\xe9.png", r"esc\x1b[31m.png", r"line\x0aend.png", r"\xe2\x80\xaegnp.png"]
    assert sorted(log.fields["path"] for log in logs[1:]) == sorted(f"c0/bad-{s}" for s in stored)
    images = rows(ctx.folder.results / "images.csv")
    assert sum(image["read"] == "1" for image in images) == 6
    assert {image["path"] for image in images if image["class"] == "caf\u00e9"} == {
        f"cafe\u0301/{name}" for name in stored
    }


@pytest.mark.mindspore
def test_classes_have_metrics_and_a_confusion_plot(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", classes=3, each=4)
    checkpoint = write_checkpoint(tmp_path / "checkpoints", ("c0", "c1", "c2", "none"))
    spec = EvaluationSpec(dataset_path=str(root), tasks=("classification",))
    ctx = context(tmp_path, weights=checkpoint, evaluation=spec)
    run(ctx)
    results = ctx.folder.results
    classes = rows(results / "classes.csv")
    assert [row["images"] for row in classes] == ["4", "4", "4", "0"]
    assert classes[3]["top1"] == ""
    figures = json.loads((results / "metrics.json").read_text())
    assert sum(int(row["recognised"]) for row in classes) / 12 == figures["metrics"]["top1"]
    assert (results / "confusion.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.mindspore
def test_groups_share_the_forward_pass_with_other_tasks(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", classes=2, each=3)
    # The images of c0 are identical, so that each ranks the others first.
    for name in ("001.png", "002.png"):
        (root / "c0" / name).write_bytes((root / "c0" / "000.png").read_bytes())
    (root / "c1" / "002.png").write_bytes(b"")
    checkpoint = write_checkpoint(tmp_path / "checkpoints", ("c0", "c1"))
    reporter = RecordingReporter()
    spec = EvaluationSpec(
        dataset_path=str(root), tasks=("classification", "copy_detection", "groups"), batch_size=4
    )
    ctx = context(tmp_path, weights=checkpoint, evaluation=spec, reporter=reporter)
    run(ctx)
    (record,) = [r for r in reporter.records if isinstance(r, EvaluationRecord)]
    assert {"top1", "copy_map", "groups_map", "groups_recall1"} <= set(record.metrics)
    assert (record.images, record.unreadable) == (5, 1)
    lines = rows(ctx.folder.results / "groups.csv")
    assert [line["scored"] for line in lines] == ["1", "1", "1", "1", "1", "0"]
    assert [line["ap"] for line in lines[:3]] == ["1.000000"] * 3
    assert [line["first"] for line in lines[:3]] == ["c0/001.png", "c0/000.png", "c0/000.png"]
    assert [line["ranks"] for line in lines[:3]] == ["0 1"] * 3
    scored = [float(line["ap"]) for line in lines if line["scored"] == "1"]
    assert np.mean(scored) == pytest.approx(record.metrics["groups_map"], abs=1e-6)
    figures = json.loads((ctx.folder.results / "groups.json").read_text())
    assert figures["metrics"]["groups_map"] == record.metrics["groups_map"]
    assert (figures["queries"], figures["queries_scored"], figures["database"]) == (6, 5, 5)


@pytest.mark.mindspore
@pytest.mark.parametrize("transform", [pytest.param("crop", marks=pytest.mark.slow), "rect"])
def test_a_benchmark_needs_no_class_folders(tmp_path: Path, transform: str) -> None:
    root = tmp_path / "holidays"
    root.mkdir()
    for number, size in {100000: (24, 18), 100001: (24, 18), 100100: (18, 24), 100101: (9, 30),
                         100200: (30, 30)}.items():  # fmt: skip
        image = noise(*size, seed=number // 100)
        (root / f"{number}.jpg").write_bytes(encode(image, "JPEG", quality=95))
    checkpoint = write_checkpoint(tmp_path / "checkpoints", ("x", "y"))
    reporter = RecordingReporter()
    spec = EvaluationSpec.model_validate(
        {"dataset_path": str(root), "tasks": ("holidays",), "transform": transform}
    )
    ctx = context(tmp_path, weights=checkpoint, evaluation=spec, reporter=reporter)
    run(ctx)
    (record,) = [r for r in reporter.records if isinstance(r, EvaluationRecord)]
    assert set(record.metrics) == {"holidays_map"}
    assert record.images == 5
    lines = rows(ctx.folder.results / "holidays.csv")
    assert [(line["query"], line["first"]) for line in lines][:1] == [("100000.jpg", "100001.jpg")]
    logs = [record.message for record in reporter.records if isinstance(record, LogRecord)]
    assert "holidays: 2 queries of 3 groups, 5 images: a part of the benchmark's 1491" in logs
    figures = json.loads((ctx.folder.results / "holidays.json").read_text())
    assert (figures["transform"], figures["gem_p"], figures["resolution"]) == (transform, 3.0, 16)
    files = sorted(path.name for path in ctx.folder.results.iterdir())
    assert files == ["holidays.csv", "holidays.json", "metrics.json"]


@pytest.mark.mindspore
@pytest.mark.slow
def test_square_images_have_equal_results_with_crop_and_rect(tmp_path: Path) -> None:
    # For square images without a margin both transforms are equal; only the batches and
    # compilation differ.
    root = write_dataset(tmp_path / "data", classes=2, each=3)
    checkpoint = write_checkpoint(tmp_path / "checkpoints", ("c0", "c1"))
    losses = []
    for transform in ("crop", "rect"):
        spec = EvaluationSpec.model_validate(
            {"dataset_path": str(root), "tasks": ("classification",), "transform": transform}
        )
        ctx = context(tmp_path / transform, weights=checkpoint, evaluation=spec)
        run(ctx)
        losses.append([float(row["loss"]) for row in rows(ctx.folder.results / "images.csv")])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.mindspore
def test_fewer_folders_than_classes_are_mapped_by_name(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", classes=2, each=2)
    labels = ("a", "c1", "b", "c0")
    checkpoint = write_checkpoint(tmp_path / "checkpoints", labels, classes=6)
    spec = EvaluationSpec(dataset_path=str(root), tasks=("classification",))
    ctx = context(tmp_path, weights=checkpoint, evaluation=spec)
    run(ctx)
    confusion = rows(ctx.folder.results / "confusion.csv")
    counts = {
        row["true \\ predicted"]: sum(int(row[n]) for n in list(row)[1:]) for row in confusion
    }
    assert counts == {"a": 0, "c1": 2, "b": 0, "c0": 2}


@pytest.mark.mindspore
def test_other_classes_are_refused_for_classification_only(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", classes=2, each=2)
    checkpoint = write_checkpoint(tmp_path / "checkpoints", ("x", "y"))
    for tasks in (("classification",), ("classification", "copy_detection")):
        spec = EvaluationSpec.model_validate({"dataset_path": str(root), "tasks": tasks})
        with pytest.raises(MultigrainError, match="'c0'") as caught:
            run(context(tmp_path, weights=checkpoint, evaluation=spec))
        assert caught.value.kind is ErrorKind.DATASET
    spec = EvaluationSpec(dataset_path=str(root), tasks=("copy_detection",))
    run(context(tmp_path, weights=checkpoint, evaluation=spec))


@pytest.mark.mindspore
def test_a_mostly_unreadable_dataset_fails_before_the_evaluation(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", classes=2, each=4)
    for path in sorted(root.rglob("*.png"))[:5]:
        path.write_bytes(b"")
    checkpoint = write_checkpoint(tmp_path / "checkpoints", ("c0", "c1"))
    spec = EvaluationSpec(dataset_path=str(root))
    with pytest.raises(MultigrainError, match="5 of 8 images") as caught:
        run(context(tmp_path, weights=checkpoint, evaluation=spec))
    assert caught.value.kind is ErrorKind.DATASET


@pytest.mark.mindspore
def test_a_stop_request_ends_the_job(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", classes=2, each=4)
    checkpoint = write_checkpoint(tmp_path / "checkpoints", ("c0", "c1"))
    reporter = RecordingReporter(stop_after=2)
    spec = EvaluationSpec(dataset_path=str(root), batch_size=2)
    ctx = context(tmp_path, weights=checkpoint, evaluation=spec, reporter=reporter)
    assert run(ctx).stopped
    assert not any(isinstance(record, EvaluationRecord) for record in reporter.records)


@pytest.mark.mindspore
def test_a_weights_files_network_is_detected(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", ("c0", "c1"))
    bare = checkpoint / "model.safetensors"
    for trunk in ("", "resnet18"):
        restored = restore(bare, trunk=trunk)
        assert (restored.spec.trunk, restored.spec.stem) == ("resnet18", "small")
        assert restored.spec.classes == 2
        assert restored.spec.gem_p == 3.0


def test_a_weights_file_of_an_unknown_network_is_refused(tmp_path: Path) -> None:
    save_file({"trunk.w": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(MultigrainError, match="match no known network") as caught:
        restore(tmp_path / "w.safetensors")
    assert caught.value.violations[0].field == "spec.trunk"


@pytest.mark.mindspore
def test_torchvision_weights_use_average_pooling(tmp_path: Path) -> None:
    shapes = pytorch_shapes("resnet18", 2)
    state = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(state, tmp_path / "w.safetensors")
    restored = restore(tmp_path / "w.safetensors")
    assert (restored.spec.trunk, restored.spec.stem) == ("resnet18", "imagenet")
    assert (restored.spec.classes, restored.spec.gem_p) == (2, 1.0)
    assert restored.network.pool.value == 1.0
    assert restore(tmp_path / "w.safetensors", gem_p=3.0).network.pool.value == 3.0
    with pytest.raises(MultigrainError, match="has a resnet18") as caught:
        restore(tmp_path / "w.safetensors", trunk="resnet50")
    assert caught.value.violations[0].field == "spec.trunk"


@pytest.mark.mindspore
def test_the_pooling_exponent_can_be_replaced(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", ("c0", "c1"))
    restored = restore(checkpoint, gem_p=5.0)
    assert restored.network.pool.value == 5.0
    assert restored.spec.gem_p == 5.0
    assert restored.state["pool.p"] == 5.0
