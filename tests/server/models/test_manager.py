"""Loading, switching, naming and removing models, with real engines."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import numpy as np
import psutil
import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server import service_names
from multigrain_server.models.catalog import ModelView
from tests.engine.bundles import write_bundle
from tests.engine.held import hold
from tests.engine.pictures import picture
from tests.server.serving.harness import harness, small_config, until, vectors

pytestmark = pytest.mark.process


def state(view: ModelView) -> str:
    return view.state.value


async def test_an_empty_registry_is_empty_and_not_serving(tmp_path: Path) -> None:
    async with harness(tmp_path) as h:
        page = h.manager.catalog.page()
        assert page.models == ()
        assert page.default_model == ""
        assert h.health[service_names.EMBEDDING] is False
        with pytest.raises(MultigrainError, match="no models yet") as caught:
            await h.manager.load("tiny")
        assert caught.value.kind is ErrorKind.NOT_FOUND


async def test_a_loaded_model_shows_its_runtime(root: Path) -> None:
    async with harness(root) as h:
        view = await h.manager.load("tiny")
        assert view.entry.version.version == 2
        assert state(view) == "ready"
        assert view.runtime.startswith("openvino")
        assert "auto" in view.runtime
        assert view.load_seconds > 0
        assert h.health == {service_names.EMBEDDING: True, f"{service_names.EMBEDDING}/tiny": True}
        assert h.metric("multigrain_model_state", model="tiny", version="2", state="ready") == 1
        assert h.metric("multigrain_model_load_seconds_count") == 1
        again = await h.manager.load("tiny")
        assert again.load_seconds == view.load_seconds


async def test_an_engine_uses_huge_pages(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def tunables() -> str | None:
        async with harness(root) as h:
            await h.manager.load("tiny", "openvino-f32")
            engine = psutil.Process(h.manager.catalog.route("tiny").engine.pid)
            return engine.environ().get("GLIBC_TUNABLES")

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert await tunables() == "glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")  # an operator's word
    assert await tunables() == "glibc.malloc.hugetlb=0"


async def test_a_metric_shows_the_runtime_of_each_loaded_model(root: Path) -> None:
    def infos() -> list[tuple[str, ...]]:
        names = ("model", "version", "runtime", "precision", "device")
        return [
            tuple(sample.labels[name] for name in names)
            for family in h.registry.collect()
            for sample in family.samples
            if sample.name == "multigrain_model_info"
        ]

    async with harness(root) as h:
        await h.manager.load("tiny", "openvino-f32")
        assert infos() == [("tiny", "2", "openvino", "f32", "cpu")]
        await h.manager.load("tiny", "onnxruntime")
        assert infos() == [("tiny", "2", "onnxruntime", "f32", "cpu")]
        await h.manager.unload("tiny@2")
        assert infos() == []


async def test_a_name_means_the_newest_loaded_version(root: Path) -> None:
    async with harness(root, small_config(keep_replaced_versions=True)) as h:
        await h.manager.load("tiny@1")
        assert (await h.embed(picture(1), model="tiny")).model == "tiny@1"
        await h.manager.load("tiny@2")
        assert (await h.embed(picture(1), model="tiny")).model == "tiny@2"
        assert (await h.embed(picture(1), model="tiny@1")).model == "tiny@1"
        assert (await h.embed(picture(1))).model == "tiny@2"
        await h.manager.unload("tiny@2")
        assert (await h.embed(picture(1), model="tiny")).model == "tiny@1"


async def test_a_newer_version_replaces_the_older_one(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny@1")
        old = h.manager.catalog.route("tiny").engine
        await h.manager.load("tiny@2")
        await until(lambda: state(h.manager.catalog.view("tiny@1")) == "unloaded")
        assert old.ended.is_set()


async def test_an_alias_keeps_the_version_it_points_at(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny@1")
        assert h.manager.set_alias("production", "tiny@1") == "tiny@1"
        await h.manager.load("tiny@2")
        await asyncio.sleep(0.1)
        assert (await h.embed(picture(1), model="production")).model == "tiny@1"
        for refused in (h.manager.unload("tiny@1"), h.manager.unload("production")):
            with pytest.raises(MultigrainError, match="alias production") as caught:
                await refused
            assert caught.value.kind is ErrorKind.WRONG_STATE
        h.manager.set_alias("production", "tiny@2")
        assert (await h.embed(picture(1), model="production")).model == "tiny@2"
        assert h.manager.catalog.page().aliases == {"production": "tiny@2"}
        assert h.manager.catalog.view("tiny@2").aliases == ("production",)
        h.manager.set_alias("production", "")
        with pytest.raises(MultigrainError, match="no alias production"):
            h.manager.set_alias("production", "")


async def test_an_alias_must_point_at_a_loaded_version(root: Path) -> None:
    async with harness(root) as h:
        with pytest.raises(MultigrainError, match="tiny@1 is not loaded") as caught:
            h.manager.set_alias("production", "tiny@1")
        assert caught.value.kind is ErrorKind.WRONG_STATE
        with pytest.raises(MultigrainError, match="name of a model"):
            h.manager.set_alias("tiny", "tiny@1")
        with pytest.raises(MultigrainError, match="alias"):
            h.manager.set_alias("a b", "tiny@1")


async def test_the_first_loaded_model_is_the_default_until_one_is_chosen(root: Path) -> None:
    write_bundle(root / "models", "other")
    async with harness(root) as h:
        await h.manager.load("tiny")
        await h.manager.load("other")
        assert h.manager.catalog.page().default_model == "tiny@2"
        await h.manager.load("other", make_default=True)
        assert (await h.embed(picture(1))).model == "other@1"
        await h.manager.unload("other")
        assert (await h.embed(picture(1))).model == "tiny@2"


async def test_swapping_versions_under_load_loses_no_request(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny@1")
        data = picture(1)
        answers = []
        stop = False

        async def caller() -> None:
            while not stop:
                answers.append(await h.embed(data, model="tiny"))

        callers = [asyncio.create_task(caller()) for _ in range(4)]
        await until(lambda: len(answers) > 20)
        await h.manager.load("tiny@2")
        await until(lambda: state(h.manager.catalog.view("tiny@1")) == "unloaded")
        count = len(answers)
        await until(lambda: len(answers) > count + 20)
        stop = True
        await asyncio.gather(*callers)
        expected = vectors(await h.embed(data, model="tiny@2"))
    models = [answer.model for answer in answers]
    assert set(models) == {"tiny@1", "tiny@2"}
    assert all(item.error is None for answer in answers for item in answer.results)
    for answer in answers:
        if answer.model == "tiny@2":
            np.testing.assert_allclose(vectors(answer), expected, rtol=1e-4)


async def test_a_request_in_flight_is_answered_by_the_version_it_began_with(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny@1")
        engine = h.manager.catalog.route("tiny").engine
        hold(engine, 100)
        inside = asyncio.create_task(h.embed(picture(1), model="tiny"))
        await until(lambda: engine.in_flight == 1)
        await h.manager.load("tiny@2")
        assert (await h.embed(picture(1), model="tiny")).model == "tiny@2"
        assert state(h.manager.catalog.view("tiny@1")) == "draining"
        hold(engine, 0)
        assert (await inside).model == "tiny@1"
        await until(lambda: state(h.manager.catalog.view("tiny@1")) == "unloaded")


async def test_draining_has_a_timeout(root: Path) -> None:
    async with harness(root, small_config(drain_seconds=0.2)) as h:
        await h.manager.load("tiny@1")
        engine = h.manager.catalog.route("tiny").engine
        hold(engine, 100)
        inside = asyncio.create_task(h.embed(picture(1)))
        await until(lambda: engine.in_flight == 1)
        await h.manager.unload("tiny@1")
        with pytest.raises(MultigrainError) as caught:
            await inside
        assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_a_canceled_unload_still_ends_the_engine(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny@1")
        engine = h.manager.catalog.route("tiny").engine
        hold(engine, 100)
        inside = asyncio.create_task(h.embed(picture(1)))
        await until(lambda: engine.in_flight == 1)
        unload = asyncio.create_task(h.manager.unload("tiny@1"))
        await until(lambda: state(h.manager.catalog.view("tiny@1")) == "draining")
        unload.cancel()
        await asyncio.gather(unload, return_exceptions=True)
        hold(engine, 0)
        await inside
        await until(engine.ended.is_set)
        await until(lambda: state(h.manager.catalog.view("tiny@1")) == "unloaded")


async def test_calls_that_load_the_same_model_share_one_engine(root: Path) -> None:
    async with harness(root) as h:
        views = await asyncio.gather(*(h.manager.load("tiny@1") for _ in range(3)))
        assert len({view.load_seconds for view in views}) == 1
        assert h.metric("multigrain_model_load_seconds_count") == 1


async def test_a_runtime_that_fails_to_load_does_not_replace_the_present_one(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny@1")
        first = h.manager.catalog.route("tiny").engine
        with pytest.raises(MultigrainError, match=r"no weights\.safetensors"):
            await h.manager.load("tiny@1", "mindspore")
        assert h.manager.catalog.route("tiny").engine is first
        await h.manager.load("tiny@1", "onnxruntime")
        second = h.manager.catalog.route("tiny").engine
        assert second is not first
        await until(first.ended.is_set)
        await h.embed(picture(1))
        with pytest.raises(MultigrainError, match="runtime"):
            await h.manager.load("tiny@1", "tensorrt")


async def test_a_bundle_of_another_user_cannot_be_deleted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    async with harness(root) as h:
        monkeypatch.setattr("multigrain_server.models.registry.os.rename", refused)
        with pytest.raises(MultigrainError, match=r"tiny@1 cannot .*; let uid") as caught:
            await h.manager.delete("tiny@1")
        monkeypatch.undo()
        assert caught.value.kind is ErrorKind.STORAGE
        await h.manager.delete("tiny@1")


async def test_only_unused_versions_can_be_deleted(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny@2")
        with pytest.raises(MultigrainError, match="loaded") as caught:
            await h.manager.delete("tiny@2")
        assert caught.value.kind is ErrorKind.WRONG_STATE
        with pytest.raises(MultigrainError, match="must state the version"):
            await h.manager.delete("tiny")
        await h.manager.delete("tiny@1")
        assert not (root / "models/tiny/1").exists()
        assert (root / "models/tiny/2").exists()
        with pytest.raises(MultigrainError, match="it has version 2"):
            await h.manager.delete("tiny@1")


async def test_models_are_listed_in_pages(root: Path) -> None:
    for name in ("a", "b", "c"):
        write_bundle(root / "models", name)
    async with harness(root) as h:
        await h.manager.load("b")
        names, token = [], ""
        while True:
            page = h.manager.catalog.page(size=2, token=token)
            names += [str(view.entry.version) for view in page.models]
            token = page.next_token
            if not token:
                break
        assert names == ["a@1", "b@1", "c@1", "tiny@1", "tiny@2"]
        loaded = h.manager.catalog.page(loaded_only=True).models
        assert [str(view.entry.version) for view in loaded] == ["b@1"]
        assert len(h.manager.catalog.page("tiny").models) == 2
        with pytest.raises(MultigrainError, match="page_size"):
            h.manager.catalog.page(size=1001)
        with pytest.raises(MultigrainError, match="page_token"):
            h.manager.catalog.page(token="!")


async def test_a_folder_that_is_not_a_bundle_is_ignored(root: Path) -> None:
    (root / "models/tiny/3").mkdir()
    (root / "models/tiny/3/model.json").write_text("{")
    (root / "models/tiny/4").mkdir()
    text = (root / "models/tiny/1/model.json").read_text()
    (root / "models/tiny/4/model.json").write_text(text)
    async with harness(root) as h:
        assert [v.entry.version.version for v in h.manager.catalog.page().models] == [1, 2]
        assert h.manager.catalog.bundle_path("tiny") == root / "models/tiny/2"


async def test_a_new_bundle_appears_when_its_folder_does(root: Path) -> None:
    async with harness(root) as h:
        await h.manager.load("tiny")
        write_bundle(root / "models", version=3)
        h.manager.publish()
        assert h.metric("multigrain_model_state", model="tiny", version="3", state="unloaded") == 1
        assert (await h.manager.load("tiny")).entry.version.version == 3
