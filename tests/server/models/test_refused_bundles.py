"""Folders in models/ that cannot be used: they are listed with the reason and harm no other."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.v1 import model_pb2
from multigrain_server.grpc import models
from multigrain_server.models.registry import BundleRegistry
from tests.server.models.test_archive import bundle_files, left_aside, tar, upload
from tests.server.serving.harness import harness

BAD: dict[str, dict[str, Any]] = {
    "embedding_size": {"embedding_size": 2**62},
    "labels": {"labels": ["\x1b]0;x\x07"]},
    "many labels": {"labels": ["x"] * 100_001},
    "step": {"source": {"step": 2**70}},
    "weights": {"weights": "../../../../outside.safetensors"},
    "absolute weights": {"weights": "/etc/passwd"},
    "files": {"files": {"model.onnx": {"sha256": "x", "bytes": -1}}},
    "model": {"model": {"classes": 2**64}},
    "version": {"version": 9},
    "name": {"name": "other"},
    "unknown": {"\x1b[31m" * 1000: 1},
    "create_time": {"create_time": "9" * 10_000},
    "metrics": {"metrics": {"\ud800": 1.0}},
}


def manifest_with(root: Path, fields: dict[str, Any]) -> bytes:
    good = json.loads((root / "models/tiny/1/model.json").read_text())
    return json.dumps({**good, "version": 7, **fields}).encode()


def put(root: Path, content: bytes) -> Path:
    path = root / "models/tiny/7/model.json"
    path.parent.mkdir()
    path.write_bytes(content)
    return path


def listed(h: Any) -> dict[int, model_pb2.Model]:
    page = models._page_message(h.manager.catalog.page())
    return {model.version: model for model in page.models}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_entry_is_listed_with_its_reason_and_can_be_deleted(
    root: Path, bad: str
) -> None:
    put(root, manifest_with(root, BAD[bad]))
    async with harness(root) as h:
        found = listed(h)
        assert sorted(found) == [1, 2, 7]
        assert [found[n].state for n in (1, 2)] == [model_pb2.MODEL_STATE_UNLOADED] * 2
        assert found[7].state == model_pb2.MODEL_STATE_FAILED
        assert found[7].state_message.startswith("refused: ")
        assert found[7].state_message.isprintable()
        assert len(found[7].state_message) <= 1000
        h.manager.publish()
        assert h.manager.catalog.bundle_path("tiny") == root / "models/tiny/2"
        with pytest.raises(MultigrainError, match="cannot use what is in it") as caught:
            await h.manager.load("tiny@7")
        assert caught.value.kind is ErrorKind.NOT_FOUND
        await h.manager.delete("tiny@7")
        assert sorted(listed(h)) == [1, 2]
        assert not (root / "models/tiny/7").exists()
        assert left_aside(h, root) == []


@pytest.mark.parametrize("bad", [name for name in BAD if name not in ("version", "name")])
async def test_a_bad_manifest_is_not_imported(root: Path, tmp_path: Path, bad: str) -> None:
    files = bundle_files(tmp_path)
    files["model.json"] = manifest_with(root, BAD[bad])
    async with harness(root) as h:
        with pytest.raises(MultigrainError, match=r"its model\.json is invalid: ") as caught:
            await upload(h.manager, tar(files))
        assert caught.value.kind is ErrorKind.INVALID_FIELD
        assert sorted(listed(h)) == [1, 2]
        assert left_aside(h, root) == []


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
async def test_a_manifest_that_is_no_file_holds_nobody_up(root: Path, kind: str) -> None:
    path = root / "models/tiny/7/model.json"
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    names: list[str] = []

    def read() -> None:
        registry = BundleRegistry(root / "models")
        names.extend(map(str, registry.entries()))
        names.extend(f"{bundle.version}: refused" for bundle in registry.refused().values())

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(60)
    assert names == ["tiny@1", "tiny@2", "tiny@7: refused"]


async def test_a_list_leaves_out_labels_that_only_one_model_needs(root: Path) -> None:
    labels = [f"label {number}" for number in range(models.MAX_LISTED_LABELS)]
    put(root, manifest_with(root, {"labels": labels}))
    async with harness(root) as h:
        found = listed(h)
        assert [len(found[number].labels) for number in (1, 2, 7)] == [5, 5, 0]
        message = models._model_message(h.manager.catalog.view("tiny@7"))
        assert list(message.labels) == labels


async def test_pages_have_the_refused_entries_in_their_places(root: Path) -> None:
    put(root, b"{")
    async with harness(root) as h:
        seen, token = [], ""
        for _ in range(3):
            page = h.manager.catalog.page(size=1, token=token)
            seen += [model.version for model in models._page_message(page).models]
            token = page.next_token
        assert seen == [1, 2, 7]
        assert token == ""
        assert h.manager.catalog.page(loaded_only=True).refused == ()


@pytest.mark.parametrize("name", ["²", "9" * 5000, "-1", "1.5", "٣"])
async def test_odd_folders_do_not_change_the_next_version(root: Path, name: str) -> None:
    if len(name) < 255:
        (root / "models/tiny" / name).mkdir()
    assert BundleRegistry(root / "models").next_version("tiny") == 3
