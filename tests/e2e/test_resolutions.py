"""A pooling exponent chosen by a job, then a bundle of two resolutions with whitening, served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multigrain.bundle.folder import read
from multigrain.images.preprocess import preprocess
from multigrain.weights.restore import restore
from multigrain.whitening import read_whitening
from multigrain_client import InvalidRequest
from tests.data.datasets import write_dataset
from tests.e2e.daemon import Daemon
from tests.evaluate.context import write_checkpoint

pytestmark = pytest.mark.process


@pytest.mark.slow
def test_an_exponent_is_searched_by_two_workers_and_served_with_whitening(tmp_path: Path) -> None:
    from mindspore import Tensor

    dataset = write_dataset(tmp_path / "pictures", classes=3, each=4)
    checkpoint = write_checkpoint(tmp_path / "checkpoints", ("c0", "c1", "c2"))
    daemon = Daemon(tmp_path, [tmp_path], ["--devices=cpu:2"]).start()
    try:
        with daemon.client() as client:
            jobs = [
                client.evaluate(
                    checkpoint_path=checkpoint,
                    dataset_path=dataset,
                    tasks=["gem_p"],
                    resolution=24,
                    exponent={"candidates": [1.0, 5.0], "views": 3},
                    devices={"count": count},
                )
                for count in (1, 2)
            ]
            alone, together = (client.wait(job, timeout=240) for job in jobs)
            chosen = alone.metrics["gem_p"]
            assert chosen in (1.0, 5.0)
            assert together.metrics.keys() == alone.metrics.keys()
            for name, value in alone.metrics.items():
                assert together.metrics[name] == pytest.approx(value, abs=1e-4), name

            export = client.export(
                checkpoint_path=checkpoint,
                model_name="two",
                formats=["onnx"],
                resolutions=[{}, {"resolution": 24, "gem_p": chosen}],
                whitening_path=str(dataset),
            )
            client.wait(export, timeout=240)
            model = client.load_model("two", runtime="openvino-f32", make_default=True)
            assert [(r.resolution, r.gem_p, r.whitened_size) for r in model.resolutions] == [
                (16, 3.0, 513), (24, chosen, 513),
            ]  # fmt: skip

            files = sorted(dataset.rglob("*.png"))[:3]
            bundle = read(daemon.data_dir / "models" / "two" / "1", verify=True)
            for resolution in (16, 24):
                head = bundle.head(resolution)
                images = [preprocess(file.read_bytes(), head.preprocessing) for file in files]
                network = restore(checkpoint, gem_p=head.gem_p).network
                embedding = network(Tensor(np.stack(images)))[0].asnumpy()
                assert head.whitening is not None
                path = daemon.data_dir / "models" / "two" / "1" / head.whitening.file
                phi = read_whitening(path, 512).apply(embedding)
                expected = phi / np.linalg.norm(phi, axis=1, keepdims=True)
                served = client.embed(files, resolution=resolution, whiten=True)
                np.testing.assert_allclose(served, expected, atol=1e-3)
            assert client.embed(files).shape == (3, 512)
            with pytest.raises(InvalidRequest, match="use 16, 24"):
                client.embed(files, resolution=32)
    finally:
        daemon.end()
