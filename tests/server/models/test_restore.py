"""A restarted daemon loads the models of the last run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models.catalog import ModelView
from tests.engine.bundles import write_bundle
from tests.engine.pictures import picture
from tests.server.serving.harness import harness, until, vectors

pytestmark = pytest.mark.process


def state(view: ModelView) -> str:
    return view.state.value


async def test_a_restarted_daemon_loads_the_same_models(root: Path) -> None:
    write_bundle(root / "models", "other")
    async with harness(root) as h:
        await h.manager.load("tiny@1", "onnxruntime")
        await h.manager.load("other", make_default=True)
        h.manager.set_alias("production", "tiny@1")
        before = vectors(await h.embed(picture(1), model="production"))
    async with harness(root) as h:
        # It is known at once to be on its way, not unknown.
        with pytest.raises(MultigrainError, match="still loading") as caught:
            await h.embed(picture(1))
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        await until(
            lambda: len([v for v in h.manager.catalog.page().models if state(v) == "ready"]) == 2
        )
        assert (await h.embed(picture(1))).model == "other@1"
        answer = await h.embed(picture(1), model="production")
        assert answer.model == "tiny@1"
        assert "requested" in h.manager.catalog.view("tiny@1").runtime
        np.testing.assert_array_equal(vectors(answer), before)


async def test_a_model_that_cannot_be_restored_shows_the_reason(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny@1")
        await h.manager.load("tiny@2")
    (root / "models/tiny/2/model.onnx").write_bytes(b"")
    async with harness(root) as h:
        await until(lambda: state(h.manager.catalog.view("tiny@2")) == "failed")
        assert "does not match its checksum" in h.manager.catalog.view("tiny@2").message
        with pytest.raises(MultigrainError, match="does not match its checksum") as caught:
            await h.embed(picture(1))
        # A retry cannot help: the daemon does not try again either.
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert caught.value.retry_after is None
        assert "LoadModel loads it again" in caught.value.message
        view = await h.manager.unload("tiny@2")
        assert state(view) == "unloaded"
