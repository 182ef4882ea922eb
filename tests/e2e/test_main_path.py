"""Train on two workers, evaluate, export, load, embed and classify: the whole way of a picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from multigrain.whitening import read_whitening
from tests.deploy import named
from tests.deploy.prometheus import Prometheus
from tests.e2e.daemon import Daemon, open_to_other_users, wait_for_no_processes
from tests.e2e.jobs import small_training

pytestmark = [pytest.mark.process, pytest.mark.slow]

# Runs in a process of its own, so that this one never imports MindSpore.
EMBED_WITH_THE_LIBRARY = """
import json, sys
from pathlib import Path
import mindspore
import numpy as np
from multigrain.checkpoint import store
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain.model.multigrain import build_model
from multigrain.model.state import load_model_state

checkpoint = store.load(Path(sys.argv[1]))
spec = checkpoint.manifest.model
model = build_model(spec, spec.classes)
load_model_state(model, checkpoint.model)
model.set_train(False)
how = Preprocessing.standard(spec.image_size, spec.center_crop)
images = np.stack([preprocess(Path(path).read_bytes(), how) for path in sys.argv[3:]])
embedding, logits = model(mindspore.Tensor(images))
np.savez(sys.argv[2], embedding=embedding.asnumpy(), logits=logits.asnumpy())
"""

RUN_MINDIR = """
import sys
import mindspore
import numpy as np
from mindspore import nn

images = np.load(sys.argv[2])
net = nn.GraphCell(mindspore.load(sys.argv[1]))
rows = [net(mindspore.Tensor(image[None])) for image in images]
np.save(sys.argv[3], np.concatenate([row[0].asnumpy() for row in rows]))
"""


@pytest.fixture
def daemon(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A running daemon on a host that seems to have a GPU, for the panels that show it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    tool = programs / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0, 35, 1024, 2048\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    server = Daemon(tmp_path, roots=[digits]).start()
    yield server
    server.end()


def normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_whole_way_of_a_picture(daemon: Daemon, digits: Path, tmp_path: Path) -> None:
    with Prometheus(tmp_path / "prometheus", daemon.http_address) as prometheus:
        walk(daemon, digits, tmp_path)
        prometheus.settle()
        missing = [
            f"{name}: {text}"
            for name, texts in named.expressions().items()
            for text in texts
            if not prometheus.query(named.ever(text))
        ]
    assert not missing, "these return no data:\n" + "\n".join(missing)

    assert daemon.stop() == 0
    wait_for_no_processes(daemon.data_dir)
    assert not open_to_other_users(daemon.data_dir)


def walk(daemon: Daemon, digits: Path, tmp_path: Path) -> None:
    with daemon.client() as client:
        schedule = {
            "every_epochs": 1,
            "tasks": ["classification", "copy_detection", "groups"],
            "metric": "copy_map",
        }
        spec = small_training(digits, epochs=2, workers=2, evaluation=schedule)
        job = client.start_training(spec, name="whole way")
        points = list(client.stream_losses(job))
        job = client.wait(job)

        steps = [point.step for point in points]
        assert steps == list(range(1, job.progress.total_steps + 1))
        for point in points:
            joint = 0.5 * point.classification_loss + 0.5 * point.instance_loss
            assert point.loss == pytest.approx(joint, rel=1e-4)
        assert points[0].refreshed_layers == points[0].curvature_layers > 20
        assert points[1].refreshed_layers == 0
        assert job.last_checkpoint.step == job.progress.total_steps
        assert 0 <= job.metrics["top1"] <= job.metrics["top5"] <= 1
        found = {
            event.evaluation.step: event.evaluation.metrics["copy_map"]
            for event in client.stream_events(job, kinds=["evaluation"])
        }
        assert list(found) == [job.progress.total_steps // 2, job.progress.total_steps]
        assert job.best_checkpoint.step == max(found, key=lambda step: (found[step], -step))
        assert 0 < job.metrics["groups_map"] <= 1

        val = digits / "val"
        evaluation = client.wait(client.evaluate(job=job, dataset_path=val))
        counted = evaluation.metrics["top1"] * len(list(val.rglob("*.png")))
        assert counted == pytest.approx(round(counted), abs=1e-6)
        assert evaluation.metrics["top1"] == pytest.approx(job.metrics["top1"], abs=1e-6)
        assert 0 < evaluation.metrics["copy_map"] <= 1

        train = str(digits / "train")
        export = client.export(job=job, model_name="digits", whitening_path=train, int8="off")
        exported = client.wait(export)
        assert exported.artifact.model == "digits@1"
        files = sorted(val.rglob("*.png"))[:7]
        # As served by default, in bfloat16 where the CPU has it; then to float32's last digits.
        assert client.load_model("digits").runtime.startswith("openvino")
        quick = client.embed(files)
        client.load_model("digits", runtime="openvino-f32")
        served = client.embed(files)
        assert (quick * served).sum(axis=1).min() >= 0.9995
        classes = client.classify(files, top_k=4)

        checkpoint = daemon.data_dir / "jobs" / job.job_id / "checkpoints"
        checkpoint = checkpoint / job.last_checkpoint.name
        reference = run_library(checkpoint, files, tmp_path)
        np.testing.assert_allclose(served, normalised(reference["embedding"]), atol=1e-4)
        scores = np.exp(reference["logits"] - reference["logits"].max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
        for row, answer in zip(scores, classes, strict=True):
            assert [c.probability for c in answer] == pytest.approx(
                sorted(row.tolist(), reverse=True)[:4], abs=1e-4
            )

        bundle = daemon.data_dir / "models" / "digits" / "1"
        # Trained weights: the classifier of whitened vectors names the same classes in order.
        everything = sorted(val.rglob("*.png"))
        phi = client.embed(everything, whiten=True, normalize=False)
        stored = read_whitening(bundle / "whitening.safetensors", served.shape[1])
        order = np.argsort(-(phi @ stored.weight.T + stored.bias), axis=1)
        named_classes = client.classify(everything, top_k=4)
        assert order.tolist() == [[c.class_id for c in answer] for answer in named_classes]

        np.testing.assert_allclose(
            normalised(run_mindir(bundle, files, tmp_path)), served, atol=1e-4
        )

        # One broken picture fails alone, and says so.
        answers = client.Embed(images=[files[0].read_bytes(), b"not an image", b""])
        assert [result.status.code for result in answers.results] == [0, 3, 3]
        assert "image" in answers.results[1].status.message


def run_library(checkpoint: Path, files: list[Path], folder: Path) -> dict[str, np.ndarray]:
    """Embeddings and logits straight from the checkpoint, without the daemon."""
    out = folder / "library.npz"
    subprocess.run(
        [sys.executable, "-c", EMBED_WITH_THE_LIBRARY, checkpoint, out, *files], check=True
    )
    return dict(np.load(out))


def run_mindir(bundle: Path, files: list[Path], folder: Path) -> np.ndarray:
    """Embeddings from the exported MINDIR."""
    from multigrain.bundle.manifest import BundleManifest
    from multigrain.images.preprocess import preprocess

    manifest = BundleManifest.model_validate(json.loads((bundle / "model.json").read_text()))
    head = manifest.heads[0]
    images = np.stack([preprocess(path.read_bytes(), head.preprocessing) for path in files])
    np.save(folder / "images.npy", images)
    out = folder / "mindir.npy"
    subprocess.run(
        [sys.executable, "-c", RUN_MINDIR, bundle / head.mindir, folder / "images.npy", out],
        check=True,
    )
    return np.load(out)
