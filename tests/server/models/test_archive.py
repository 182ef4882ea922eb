"""Bundles that are uploaded and downloaded."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
import threading
from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_client.bundles import import_requests
from multigrain_server.models import archive
from multigrain_server.models.catalog import ModelView
from multigrain_server.models.manager import ModelManager
from tests.engine.bundles import write_bundle
from tests.engine.pictures import picture
from tests.server.serving.harness import Harness, harness, small_config, until


async def download(manager: ModelManager, model: str) -> bytes:
    async with manager.export_bundle(model) as packed:
        content = b"".join([chunk async for chunk in packed.chunks()])
        assert len(content) == packed.size
        assert hashlib.sha256(content).hexdigest() == packed.sha256
        return content


async def upload(
    manager: ModelManager, content: bytes, name: str = "", version: int = 0, sha256: str = ""
) -> ModelView:
    incoming = manager.import_bundle(name, version, sha256)
    try:
        for start in range(0, len(content), 1000):
            await incoming.write(content[start : start + 1000])
        return await incoming.finish()
    finally:
        await incoming.close()


def tar(files: dict[str, bytes], **odd: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in odd.items():
                setattr(info, key, value)
            packed.addfile(info, io.BytesIO(content))
    return out.getvalue()


def bundle_files(tmp_path: Path) -> dict[str, bytes]:
    folder = write_bundle(tmp_path / "elsewhere")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left_aside(h: Harness, root: Path) -> list[Path]:
    return list((root / "models" / ".aside").glob("*"))


@pytest.mark.process
async def test_a_downloaded_bundle_can_be_imported_elsewhere_and_answers_the_same(
    tmp_path: Path,
) -> None:
    write_bundle(tmp_path / "a/models", version=3)
    (tmp_path / "b").mkdir()
    async with harness(tmp_path / "a") as a, harness(tmp_path / "b") as b:
        content = await download(a.manager, "tiny")
        digest = hashlib.sha256(content).hexdigest().upper()
        first = await upload(b.manager, content, sha256=digest)
        second = await upload(b.manager, content, name="copy", version=7)
        assert str(first.entry.version) == "tiny@1"
        assert str(second.entry.version) == "copy@7"
        here, there = await a.manager.load("tiny"), await b.manager.load("copy")
        assert here.runtime == there.runtime  # auto could go on to another one on either side
        ours, theirs = await a.embed(picture(1)), await b.embed(picture(1))
        assert ours.results[0].error is None
        assert ours.results[0].vector == theirs.results[0].vector
        assert left_aside(a, tmp_path / "a") == left_aside(b, tmp_path / "b") == []
        # The same bundle is the same archive, whenever it is packed.
        assert await download(a.manager, "tiny@3") == content


async def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    files = bundle_files(tmp_path)
    async with harness(tmp_path) as h:
        await upload(h.manager, tar(files))
        with pytest.raises(MultigrainError, match="tiny@1 exists") as caught:
            await upload(h.manager, tar(files), version=1)
        assert caught.value.kind is ErrorKind.ALREADY_EXISTS
        assert str((await upload(h.manager, tar(files))).entry.version) == "tiny@2"


@pytest.mark.process
async def test_a_bundle_with_the_name_of_an_alias_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models")
    async with harness(tmp_path) as h:
        content = await download(h.manager, "tiny")
        await h.manager.load("tiny@1")
        h.manager.set_alias("production", "tiny@1")
        with pytest.raises(MultigrainError, match="production is an alias") as caught:
            await upload(h.manager, content, name="production")
        assert caught.value.kind is ErrorKind.INVALID_FIELD
        assert h.manager.catalog.page("production").models == ()
        assert not left_aside(h, tmp_path)


async def test_a_corrupted_upload_is_detected(tmp_path: Path) -> None:
    files = bundle_files(tmp_path)
    async with harness(tmp_path) as h:
        with pytest.raises(MultigrainError, match="another SHA-256"):
            await upload(h.manager, tar(files), sha256="0" * 64)
        changed = bytearray(files["model.onnx"])
        changed[100] ^= 1
        files["model.onnx"] = bytes(changed)
        with pytest.raises(MultigrainError, match="does not match its checksum"):
            await upload(h.manager, tar(files))
        assert h.manager.catalog.page().models == ()
        assert left_aside(h, tmp_path) == []


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (lambda files: b"hello", "not a complete, uncompressed tar"),
        (lambda files: b"", "not a complete, uncompressed tar"),
        (lambda files: tar(files)[:2000], "tar archive|truncated"),
        (lambda files: tar({"model.onnx": b"x"}), "no model.json"),
        (lambda files: tar({"model.json": b"{}"}), "invalid: name"),
        (lambda files: tar({"model.json": files["model.json"]}), "model.onnx is missing"),
        (lambda files: tar({**files, "../evil": b"x"}), "plain file name"),
        (lambda files: tar({**files, "/etc/evil": b"x"}), "plain file name"),
        (lambda files: tar({"a": b""}, type=tarfile.SYMTYPE, linkname="/etc"), "regular file"),
        (lambda files: tar({"a": b"", "a/b": b""}), "plain file name"),
        (lambda files: tar({f"{n}": b"" for n in range(1001)}), "more than"),
    ],
)
async def test_an_archive_that_is_not_a_bundle_is_refused(
    tmp_path: Path, archive: object, why: str
) -> None:
    content = archive(bundle_files(tmp_path))  # type: ignore[operator]
    async with harness(tmp_path) as h:
        with pytest.raises(MultigrainError, match=why) as caught:
            await upload(h.manager, content)
        assert caught.value.kind is ErrorKind.INVALID_FIELD
        assert h.manager.catalog.page().models == ()
        assert left_aside(h, tmp_path) == []
    assert not (tmp_path / "evil").exists()


async def test_files_that_the_manifest_does_not_name_are_left_out(tmp_path: Path) -> None:
    files = bundle_files(tmp_path)
    async with harness(tmp_path) as h:
        view = await upload(h.manager, tar({**files, "extra.py": b"x"}))
        assert not (view.entry.path / "extra.py").exists()


async def test_a_folder_that_the_finder_has_opened_is_imported(tmp_path: Path) -> None:
    """As the client sends it, and as `tar cf b.tar FOLDER` packs it."""
    folder = write_bundle(tmp_path / "elsewhere")
    names = {path.name for path in folder.iterdir()}
    for litter in (".DS_Store", "._model.json", "Thumbs.db"):
        (folder / litter).write_bytes(b"")
    _start, *chunks = import_requests(folder, name="", version=0)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(folder, arcname=folder.name)
    async with harness(tmp_path) as h:
        for content in (b"".join(message.chunk for message in chunks), packed.getvalue()):
            view = await upload(h.manager, content)
            assert {path.name for path in view.entry.path.iterdir()} == names


async def test_errors_of_an_archive_do_not_name_the_messages_it_came_in(tmp_path: Path) -> None:
    async with harness(tmp_path) as h:
        with pytest.raises(MultigrainError) as caught:
            await upload(h.manager, b"hello")
        assert caught.value.message.startswith("the archive is refused: ")


async def test_a_manifest_cannot_name_files_outside(tmp_path: Path) -> None:
    files = bundle_files(tmp_path)
    manifest = json.loads(files["model.json"])
    manifest["files"]["../../other"] = {"sha256": "0" * 64, "bytes": 1}
    files["model.json"] = json.dumps(manifest).encode()
    async with harness(tmp_path) as h:
        with pytest.raises(MultigrainError, match="plain file name"):
            await upload(h.manager, tar(files))


async def test_the_size_is_checked_during_the_upload(tmp_path: Path) -> None:
    async with harness(tmp_path, small_config(max_bundle_bytes=3000)) as h:
        with pytest.raises(MultigrainError, match="larger than 3000 bytes"):
            await upload(h.manager, bytes(5000))
        assert left_aside(h, tmp_path) == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": "a/b"}, "start.name"),
        ({"name": "a@1"}, "start.name"),
        ({"sha256": "123"}, "start.sha256"),
        ({"version": 2**63}, "start.version"),
    ],
)
async def test_an_invalid_start_is_refused_by_field(
    tmp_path: Path, fields: dict[str, object], named: str
) -> None:
    async with harness(tmp_path) as h:
        with pytest.raises(MultigrainError) as caught:
            h.manager.import_bundle(**{"name": "", "version": 0, "sha256": "", **fields})
        assert caught.value.violations[0].field == named
        assert left_aside(h, tmp_path) == []


async def test_files_that_a_thread_still_writes_after_a_cancellation_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tar(bundle_files(tmp_path))
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def slowly(_file: object, folder: Path, **_limits: object) -> None:
        begun.set()
        go_on.wait(60)
        folder.mkdir(parents=True)
        (folder / "late").write_bytes(b"x")
        ended.set()

    monkeypatch.setattr(archive, "unpack_tar", slowly)
    async with harness(tmp_path) as h:
        call = asyncio.create_task(upload(h.manager, content))
        await until(begun.is_set)
        call.cancel()
        await asyncio.wait([call], timeout=0.3)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(ended.is_set)
        assert left_aside(h, tmp_path) == []
