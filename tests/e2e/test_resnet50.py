"""ResNet-50 at 224 px, on this machine's CPU: some steps of training, then serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.e2e.daemon import Daemon

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.long]


def test_resnet50_at_224_px_trains_with_thor_and_serves(daemon: Daemon, digits: Path) -> None:
    spec = {
        "preset": "resnet50-imagenet-thor-gpu",
        "dataset": {"train_path": str(digits / "train"), "loader_threads": 1},
        "model": {"classes": 0},
        "schedule": {"batch_size": 6, "max_steps": 3},
        "optimizer": {"thor": {"frequency": 2}, "loss_scale": 1.0},
        "precision": "fp32",
        "devices": {"target": "cpu", "count": 1},
    }
    with daemon.client() as client:
        job = client.wait(client.start_training(spec))
        points = list(client.stream_losses(job))
        assert [p.step for p in points] == [1, 2, 3]
        assert [p.refreshed_layers for p in points] == [54, 0, 54]
        assert all(np.isfinite([p.loss, p.instance_loss]).all() for p in points)
        client.wait(client.export(job=job, model_name="r50", formats=["onnx"], int8="off"))
        model = client.load_model("r50")
        assert (model.resolution, model.embedding_size, model.classes) == (224, 2048, 4)
        vectors = client.embed(sorted((digits / "val").rglob("*.png"))[:3])
        assert vectors.shape == (3, 2048)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
