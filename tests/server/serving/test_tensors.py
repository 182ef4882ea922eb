"""Preprocessed images, and the probabilities of all classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from tests.engine.bundles import SIZE, TinyNetwork, write_bundle
from tests.engine.pictures import picture
from tests.server.serving.harness import harness, small_config, vectors

pytestmark = pytest.mark.process


async def test_a_preprocessed_image_gets_the_result_of_its_file(tmp_path: Path) -> None:
    network = TinyNetwork(seed=1)
    write_bundle(tmp_path / "models", also=16)
    files = [picture(seed) for seed in range(3)]
    config = small_config(max_image_bytes=1024 * 8)  # of files: a prepared image has 12 KiB
    async with harness(tmp_path, config) as h:
        await h.manager.load("tiny")
        for side in (SIZE, 16):
            parameters = Preprocessing(size=side, resize_short=side)
            prepared = [preprocess(data, parameters) for data in files]
            encoded = await h.embed(*files, resolution=side, scores=True)
            answer = await h.embed(
                *(image.tobytes() for image in prepared),
                resolution=side,
                tensors=True,
                scores=True,
                top_k=2,
            )
            np.testing.assert_allclose(vectors(answer), vectors(encoded), rtol=1e-5)
            for image, item, other in zip(prepared, answer.results, encoded.results, strict=True):
                powers = np.exp(network.logits(network.embed(image)))
                scores = np.frombuffer(item.scores, "<f4")
                np.testing.assert_allclose(scores, powers / powers.sum(), rtol=1e-4)
                np.testing.assert_allclose(scores, np.frombuffer(other.scores, "<f4"), rtol=1e-5)
                assert [c.class_id for c in item.classes(())] == np.argsort(-scores)[:2].tolist()
                assert other.classes(()) == []


async def test_a_preprocessed_image_of_another_size_or_with_non_finite_numbers_is_refused(
    tmp_path: Path,
) -> None:
    write_bundle(tmp_path / "models")
    good = np.zeros((3, SIZE, SIZE), np.float32)
    bad = good.copy()
    bad[1, 2, 3] = np.nan
    async with harness(tmp_path) as h:
        await h.manager.load("tiny")
        with pytest.raises(MultigrainError, match="3 x 32 x 32") as caught:
            await h.embed(good.tobytes(), good.tobytes()[:-4], tensors=True)
        assert caught.value.kind is ErrorKind.INVALID_FIELD
        with pytest.raises(MultigrainError, match="non-finite") as caught:
            await h.embed(good.tobytes(), bad.tobytes(), tensors=True)
        assert caught.value.kind is ErrorKind.INVALID_FIELD
        assert h.metric("multigrain_inflight_items") == 0
        assert (await h.embed(good.tobytes(), tensors=True)).results[0].error is None
