"""The OpenVINO runtime, compared with NumPy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from multigrain.bundle.reference import pattern_pixels
from multigrain.engine.runtimes.base import Compute, FloatArray, full_batch
from multigrain.engine.runtimes.openvino import OpenVinoRuntime, split_at_embedding
from multigrain.images.parameters import Preprocessing
from tests.engine.bundles import TinyNetwork

SIZE = 24
PREPROCESSING = Preprocessing.standard(SIZE)


def images(count: int) -> FloatArray:
    return np.random.default_rng(1).standard_normal((count, 3, SIZE, SIZE), dtype=np.float32)


@pytest.fixture
def network(tmp_path: Path) -> TinyNetwork:
    network = TinyNetwork()
    network.save_onnx(tmp_path / "model.onnx")
    return network


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12])
def test_every_batch_size_gives_the_outputs_of_the_network(
    count: int, network: TinyNetwork, tmp_path: Path
) -> None:
    """Twelve images in batches of three make four batches."""
    runtime = OpenVinoRuntime(
        tmp_path / "model.onnx", PREPROCESSING, Compute(threads=1, max_batch=3), "f32"
    )
    assert runtime.best_batch == 3
    assert runtime.warm_sizes == (1, 2, 3)
    batch = images(count)
    outputs = runtime.run(batch)
    expected = np.stack([network.embed(image) for image in batch])
    np.testing.assert_allclose(outputs.embedding, expected, rtol=1e-4)
    logits = np.stack([network.logits(row) for row in expected])
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-4)


def test_pixels_and_normalized_tensors_give_the_same_outputs(
    network: TinyNetwork, tmp_path: Path
) -> None:
    runtime = OpenVinoRuntime(tmp_path / "model.onnx", PREPROCESSING, Compute(threads=1), "f32")
    pictures = list(pattern_pixels(SIZE, 3))
    outputs = runtime.run_pixels(pictures)
    expected = [network.embed(runtime.normalized(picture)) for picture in pictures]
    np.testing.assert_allclose(outputs.embedding, np.stack(expected), rtol=1e-4)
    tensors = runtime.run(np.stack([runtime.normalized(picture) for picture in pictures]))
    np.testing.assert_allclose(outputs.embedding, tensors.embedding, rtol=1e-5)


def test_outputs_are_not_overwritten_by_the_next_batch(
    network: TinyNetwork, tmp_path: Path
) -> None:
    runtime = OpenVinoRuntime(tmp_path / "model.onnx", PREPROCESSING, Compute(threads=1), "f32")
    first, second = images(2)[:1], images(2)[1:]
    outputs = runtime.run(first)
    kept = outputs.embedding.copy()
    runtime.run(second)
    np.testing.assert_array_equal(outputs.embedding, kept)


def test_scores_are_computed_only_on_request(network: TinyNetwork, tmp_path: Path) -> None:
    runtime = OpenVinoRuntime(
        tmp_path / "model.onnx", PREPROCESSING, Compute(threads=1, max_batch=3), "f32"
    )
    pictures = list(pattern_pixels(SIZE, 4))
    asked, plain = (runtime.run_pixels(pictures, scores=scores) for scores in (True, False))
    np.testing.assert_array_equal(asked.embedding, plain.embedding)
    assert (asked.logits.shape[0], plain.logits.shape) == (4, (4, 0))


def test_a_graph_whose_scores_depend_on_the_images_is_not_split() -> None:
    import openvino  # after the runtime, which sees to it that it reports nothing
    import openvino.opset13 as opset

    images = opset.parameter([-1, 4], name="images")
    embedding = opset.relu(images)
    logits = opset.add(embedding, images)
    embedding.output(0).set_names({"embedding"})
    logits.output(0).set_names({"logits"})
    model = openvino.Model([embedding, logits], [images])
    whole, classifier = split_at_embedding(model)
    assert classifier is None
    assert len(whole.outputs) == 2


@pytest.mark.parametrize(
    ("resolution", "device", "best"),
    [(224, "cpu", 8), (500, "cpu", 1), (2000, "cpu", 1), (160, "cpu", 15), (32, "cpu", 32),
     (500, "gpu", 32)],
)  # fmt: skip
def test_the_best_batch_depends_on_the_resolution(resolution: int, device: str, best: int) -> None:
    assert full_batch(resolution, Compute(device, max_batch=32)) == best


def test_openvino_sends_no_telemetry() -> None:
    code = "import sys, multigrain.engine.runtimes.openvino; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "openvino" in loaded
    # The submodules send it; the package itself is None in sys.modules, which blocks its import.
    assert [name for name in loaded if name.startswith("openvino_telemetry.")] == []
