"""Downloads: made while they are sent, of files that are open from the beginning, and limited."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from multigrain.bundle.folder import read, write_manifest
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.storage import describe
from multigrain_server.models.transfers import Transfers
from tests.engine.bundles import write_bundle
from tests.server.models.test_archive import left_aside
from tests.server.serving.harness import Harness, harness, small_config

LARGE = 6 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With a model whose archive has several chunks."""
    folder = write_bundle(tmp_path / "models")
    (folder / "weights.safetensors").write_bytes(os.urandom(LARGE))
    manifest = read(folder)
    files = {**manifest.files, "weights.safetensors": describe(folder / "weights.safetensors")}
    write_manifest(folder, manifest.model_copy(update={"files": files}))
    return tmp_path


def used(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*"))


async def whole(h: Harness) -> bytes:
    async with h.manager.export_bundle("tiny") as archive:
        return b"".join([chunk async for chunk in archive.chunks()])


async def test_many_unread_downloads_take_no_disk(root: Path) -> None:
    """An archive was packed for each of them."""
    before = used(root)
    async with harness(root) as h:
        for _ in range(5):
            async with h.manager.export_bundle("tiny") as archive:
                chunks = archive.chunks()
                assert len(await anext(chunks)) == 1 << 20
                assert used(root) <= before + (1 << 16)
                assert left_aside(h, root) == []
                await chunks.aclose()


async def test_a_download_reads_a_block_when_it_is_taken(root: Path) -> None:
    async with harness(root) as h, h.manager.export_bundle("tiny") as archive:
        sizes = [len(chunk) async for chunk in archive.chunks()]
        assert sum(sizes) == archive.size
        assert set(sizes[:-1]) == {1 << 20}


@pytest.mark.parametrize("deleted", ["deleted", "replaced"])
async def test_a_bundle_that_is_deleted_under_a_download_is_sent_whole(
    root: Path, deleted: str
) -> None:
    async with harness(root) as h:
        expected = await whole(h)
        async with h.manager.export_bundle("tiny") as archive:
            if deleted == "deleted":
                await h.manager.delete("tiny@1")
            else:
                shutil.rmtree(root / "models/tiny/1")
                write_bundle(root / "models")
            content = b"".join([chunk async for chunk in archive.chunks()])
        assert content == expected
        assert archive.sha256 == hashlib.sha256(content).hexdigest()


async def test_a_file_that_changes_under_a_download_ends_it(root: Path) -> None:
    async with harness(root) as h:
        path = root / "models/tiny/1/weights.safetensors"
        async with h.manager.export_bundle("tiny") as archive:
            with path.open("r+b") as file:
                file.seek(LARGE - 1)
                file.write(b"\0" if path.read_bytes()[-1] else b"\1")
            with pytest.raises(MultigrainError, match=r"tiny@1: .*does not match") as caught:
                async for _ in archive.chunks():
                    pass
            assert caught.value.kind is ErrorKind.CHECKPOINT
            assert archive.sha256 == ""


async def test_a_download_needs_no_writable_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness(root) as h:
        monkeypatch.setattr(os, "mkdir", pytest.fail)
        assert len(await whole(h)) > LARGE


@pytest.mark.parametrize("damage", ["link", "pipe", "missing", "shorter"])
async def test_a_damaged_bundle_is_not_sent(root: Path, damage: str) -> None:
    path = root / "models/tiny/1/model.onnx"
    content = path.read_bytes()
    path.unlink()
    if damage == "link":
        (root / "outside").write_bytes(content)
        path.symlink_to(root / "outside")
    elif damage == "pipe":
        os.mkfifo(path)
    elif damage == "shorter":
        path.write_bytes(content[:-1])
    async with harness(root) as h:
        with pytest.raises(MultigrainError, match=r"tiny@1: .*model\.onnx") as caught:
            await asyncio.wait_for(whole(h), 60)
        assert caught.value.kind is ErrorKind.CHECKPOINT


def test_transfers_are_limited_for_a_client_and_in_all() -> None:
    transfers = Transfers(small_config(max_transfers_per_client=2, max_transfers=3))
    with transfers.enter("a"), transfers.enter("a"):
        with (
            pytest.raises(MultigrainError, match="max_transfers_per_client") as caught,
            transfers.enter("a"),
        ):
            pass
        assert caught.value.kind is ErrorKind.OVERLOADED
        assert caught.value.retry_after
        with (
            transfers.enter("b"),  # the neighbor has its share
            pytest.raises(MultigrainError, match=r"serving\.max_transfers allows"),
            transfers.enter("c"),
        ):
            pass
    with transfers.enter("c"), transfers.enter("a"), transfers.enter("a"):
        pass


async def test_a_client_that_does_nothing_is_ended() -> None:
    transfers = Transfers(small_config(transfer_timeout_seconds=0.01))
    with pytest.raises(MultigrainError, match=r"took no data for 0\.01 s") as caught:
        await transfers.progress(asyncio.Event().wait(), "took no data")
    assert caught.value.kind is ErrorKind.DEADLINE
