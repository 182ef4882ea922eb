"""The MindSpore runtime in an engine process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from multigrain.bundle.manifest import BundleManifest, Head
from multigrain.bundle.reference import write_reference
from multigrain.engine.protocol import EmbeddingOptions, Ready
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain.specs.training import ModelSpec
from multigrain.storage import describe
from tests.engine.client import EngineClient
from tests.engine.pictures import picture

SIZE = 32
P = 4.0


@pytest.mark.mindspore
@pytest.mark.slow
def test_mindspore_serves_the_weights_of_the_bundle_with_the_exponent_of_the_head(
    tmp_path: Path,
) -> None:
    import mindspore

    from multigrain.model.multigrain import build_model
    from multigrain.model.state import model_state

    spec = ModelSpec(trunk="resnet18", classes=7, image_size=SIZE, stem="small", learn_gem_p=True)
    network = build_model(spec, 7, seed=5)
    save_file(model_state(network), tmp_path / "weights.safetensors")
    preprocessing = Preprocessing(size=SIZE, resize_short=SIZE)
    smaller = Preprocessing(size=24, resize_short=24)
    manifest = BundleManifest(
        name="small",
        version=1,
        model=spec,
        embedding_size=network.embedding_size,
        labels=tuple("abcdefg"),
        heads=(
            Head(resolution=SIZE, gem_p=P, preprocessing=preprocessing),
            Head(resolution=24, gem_p=1.0, preprocessing=smaller),
        ),
        files={path.name: describe(path) for path in tmp_path.iterdir()},
    )
    (tmp_path / "model.json").write_text(manifest.model_dump_json())
    pictures = [picture(seed) for seed in range(5)]

    with EngineClient(tmp_path, max_batch=4, threads=1) as engine:
        assert isinstance(engine.first, Ready), engine.first
        assert engine.first.runtime.startswith("mindspore")
        assert "no ONNX graph" in engine.first.reason
        engine.hold(5)
        for number, data in enumerate(pictures):
            engine.submit(number, data, vector=EmbeddingOptions(normalize=False))
        sizes = [engine.result(number).batch_items for number in range(5)]
        served = [np.frombuffer(engine.frame(number).payload, "<f4") for number in range(5)]
        engine.hold(3)
        for number, data in enumerate(pictures[:3], 5):
            engine.submit(number, data, vector=EmbeddingOptions(normalize=False))
        padded = [np.frombuffer(engine.frame(number).payload, "<f4") for number in (5, 6, 7)]
        engine.submit(8, pictures[0], vector=EmbeddingOptions(normalize=False), resolution=24)
        at_24 = np.frombuffer(engine.frame(8).payload, "<f4")
    assert sorted(sizes) == [1, 4, 4, 4, 4]
    # Three images are computed as a batch of four; the fourth is padding.
    np.testing.assert_allclose(padded, served[:3], rtol=1e-3, atol=1e-4)

    network.pool.set_exponent(P)
    network.set_train(False)
    images = np.stack([preprocess(data, preprocessing) for data in pictures])
    embedding, _ = network(mindspore.Tensor(images))
    np.testing.assert_allclose(np.stack(served), embedding.asnumpy(), rtol=1e-3, atol=1e-4)
    assert np.ptp(np.stack(served), axis=0).max() > 1e-3
    # The second head has the same weights, with another size and exponent.
    network.pool.set_exponent(1.0)
    embedding, _ = network(mindspore.Tensor(preprocess(pictures[0], smaller)[None]))
    np.testing.assert_allclose(at_24, embedding.asnumpy()[0], rtol=1e-3, atol=1e-4)


@pytest.mark.mindspore
@pytest.mark.slow
def test_all_runtimes_serve_the_same_vectors(tmp_path: Path) -> None:
    from multigrain.export import graphs
    from multigrain.model.multigrain import build_model
    from multigrain.model.state import model_state

    spec = ModelSpec(trunk="resnet18", classes=7, image_size=SIZE, stem="small")
    network = build_model(spec, 7, seed=6)
    network.set_train(False)
    save_file(model_state(network), tmp_path / "weights.safetensors")
    preprocessing = Preprocessing(size=SIZE, resize_short=SIZE)
    expected = graphs.reference(network, preprocessing)
    images = expected.images(preprocessing)
    graphs.write_onnx(network, tmp_path / "model.onnx", images, expected)
    write_reference(tmp_path / "reference.safetensors", expected)
    manifest = BundleManifest(
        name="small",
        version=1,
        model=spec,
        embedding_size=network.embedding_size,
        labels=tuple("abcdefg"),
        heads=(
            Head(
                resolution=SIZE,
                gem_p=spec.gem_p,
                preprocessing=preprocessing,
                onnx="model.onnx",
                reference="reference.safetensors",
            ),
        ),
        files={path.name: describe(path) for path in tmp_path.iterdir()},
    )
    (tmp_path / "model.json").write_text(manifest.model_dump_json())
    served = {}
    for runtime in ("mindspore", "onnxruntime", "openvino-f32"):
        with EngineClient(tmp_path, max_batch=4, threads=1, runtime=runtime) as engine:
            assert isinstance(engine.first, Ready), engine.first
            assert engine.first.runtime.startswith(runtime.removesuffix("-f32"))
            assert "requested; cosine with the reference 1.0000" in engine.first.reason
            engine.hold(3)
            for number in range(3):
                engine.submit(number, picture(number), vector=EmbeddingOptions())
            served[runtime] = [
                np.frombuffer(engine.frame(number).payload, "<f4") for number in range(3)
            ]
    for other in ("onnxruntime", "openvino-f32"):
        np.testing.assert_allclose(served["mindspore"], served[other], atol=1e-4)
    assert np.ptp(served["mindspore"], axis=0).max() > 1e-3
