"""Rows that embed-folder has computed survive interrupts, full disks and refusing servers."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow.parquet
import pytest

from multigrain_client import InvalidRequest, RetryPolicy, output_file, vector_files
from multigrain_client.cli.arguments import Context
from multigrain_client.folder_embedding import FolderRun
from multigrain_client.images import EmbeddedImage
from multigrain_client.sync.client import Client
from tests.client.fake_server import Embedding, vector_of
from tests.client.faults import Fault
from tests.client.pictures import images_of
from tests.unprivileged import unprivileged

KINDS = ["v.npy", "v.parquet"]
# Bytes of the .npy file with 32 rows of 8 numbers.
WHOLE = 128 + 32 * 32


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, data in enumerate(images_of(100)):
        (folder / f"{number:03d}.png").write_bytes(data)
    return folder


def rows_in(path: Path) -> tuple[list[str], np.ndarray]:
    """The paths and vectors of a file."""
    if path.suffix == ".npy":
        with path.with_suffix(".csv").open(newline="") as file:
            return [row["path"] for row in csv.DictReader(file)], np.load(path)
    table = pyarrow.parquet.read_table(path)
    return table.column("path").to_pylist(), np.array(table.column("embedding").to_pylist())


def check_kept(path: Path, photos: Path, rows: int) -> None:
    """The first rows of the folder, exactly."""
    names, vectors = rows_in(path)
    assert names == [f"{number:03d}.png" for number in range(rows)]
    wanted = np.stack([vector_of((photos / name).read_bytes()) for name in names])
    np.testing.assert_array_equal(vectors.astype(np.float32), wanted)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def embed_until(client: Any, photos: Path, out: Path, error: type[BaseException]) -> None:
    """Embeds a folder; the error comes after 37 rows, and the rows must be kept."""

    def stop(done: int, total: int) -> None:
        if done == 37:
            raise error

    with pytest.raises(error) as caught:
        client.embed_folder(photos, out, on_progress=stop)
    kept = out.with_name(out.name.replace(".", ".part."))
    assert any(f"the first 37 of 100 rows are in {kept}" in n for n in caught.value.__notes__)
    check_kept(kept, photos, 37)
    assert not out.exists()
    assert not leftovers(out.parent)


@pytest.mark.parametrize("name", KINDS)
def test_error_of_the_caller_keeps_the_rows_so_far(client, photos, tmp_path, name) -> None:
    embed_until(client, photos, tmp_path / name, RuntimeError)


@pytest.mark.parametrize("name", KINDS)
def test_interrupt_keeps_the_rows_so_far(server, photos, tmp_path, name) -> None:
    # Not of an AsyncClient: the interrupt would end the thread of its event loop.
    with Client(server.address) as client:
        embed_until(client, photos, tmp_path / name, KeyboardInterrupt)


@pytest.mark.parametrize("name", KINDS)
def test_error_of_the_server_keeps_the_rows_so_far(run, state, photos, tmp_path, name) -> None:
    state.faults["EmbedStream"].append(
        Fault(grpc.StatusCode.FAILED_PRECONDITION, "unloaded", "WRONG_STATE", after=3)
    )
    code, out, err = run("embed-folder", str(photos), "--out", str(tmp_path / name))
    assert (code, out) == (1, "")
    kept = tmp_path / name.replace(".", ".part.")
    (line,) = [line for line in err.splitlines() if "embed-folder" in line]
    assert line.startswith("multigrain embed-folder: unloaded; the first 48 of 100 rows are in ")
    check_kept(kept, photos, 48)


class Disk:
    """A disk with little space: writes beyond it are cut short, as by the operating system."""

    def __init__(self, folder: Path, space: int) -> None:
        self._folder = folder
        self._space = space

    def open(self, descriptor: int, mode: str, buffering: int) -> Any:
        disk = self

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                used = sum(path.stat().st_size for path in disk._folder.iterdir())
                room = disk._space - used + os.fstat(self.fileno()).st_size - self.tell()
                if room <= 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(memoryview(data)[:room]) or 0

        file = File(descriptor, mode)
        return file if buffering == 0 else io.BufferedWriter(file)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("space", range(200, 7000, 680))
def test_full_disk_keeps_whole_rows(photos, tmp_path, monkeypatch, name, space) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if name == "v.parquet":
        # A reserve of 100 kB, and the rest.
        monkeypatch.setattr(vector_files, "_END_BYTES", 100_000)
        space += 100_000 + 10 * (8 * 4 + 512)
    monkeypatch.setattr(output_file.os, "fdopen", Disk(out, space).open)
    monkeypatch.setattr(vector_files, "ROW_GROUP", 10)
    vectors = [vector_of((photos / f"{number:03d}.png").read_bytes()) for number in range(100)]

    def embed() -> None:
        with FolderRun(photos, out / name) as run:
            for index, vector in enumerate(vectors):
                run.add(EmbeddedImage(index, "", vector, model="m@1"))
            run.finish()

    failures: list[OSError] = []
    try:
        embed()
    except OSError as error:
        failures.append(error)
    kept = out / name.replace(".", ".part.")
    if not failures:
        check_kept(out / name, photos, 100)
    else:
        assert failures[0].errno == errno.ENOSPC
        assert not (out / name).exists()
        notes = " ".join(getattr(failures[0], "__notes__", ()))
        rows = len(rows_in(kept)[0])
        assert notes.startswith(f"the first {rows} of 100 rows are in {kept}")
        check_kept(kept, photos, rows)
    assert not leftovers(out)


@pytest.mark.parametrize("name", KINDS)
def test_too_little_space_is_found_at_the_first_row(
    client, photos, tmp_path, monkeypatch, name
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(
        OSError, match=r"the vectors need .* MiB and the disk has 0 MiB free"
    ) as caught:
        client.embed_folder(photos, tmp_path / name)
    assert not hasattr(caught.value, "__notes__")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_list_of_rows_replaces_no_other_file(client, state, photos, tmp_path) -> None:
    labels = tmp_path / "v.csv"
    labels.write_text("image,label\na.png,cat\n")
    with pytest.raises(InvalidRequest, match=r"v\.csv would be replaced by the list of rows"):
        client.embed_folder(photos, tmp_path / "v.npy")
    assert labels.read_text() == "image,label\na.png,cat\n"
    assert not state.calls
    labels.unlink()
    for _ in range(2):  # its own list
        client.embed_folder(photos, tmp_path / "v.npy")


def _file_in_the_way(folder: Path) -> str:
    (folder / "dir.npy").mkdir()
    return "dir.npy"


def _read_only_file(folder: Path) -> str:
    (folder / "old.npy").write_bytes(b"old")
    (folder / "old.npy").chmod(0o444)
    return "old.npy"


def _read_only_folder(folder: Path) -> str:
    (folder / "locked").mkdir(mode=0o555)
    return "locked/v.npy"


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda folder: "nowhere/v.npy", "there is no folder"),
        (_file_in_the_way, "is a folder"),
        (_read_only_file, "Permission denied"),
        (_read_only_folder, "Permission denied"),
        (lambda folder: "x" * 300 + ".npy", "File name too long"),
    ],
)
@pytest.mark.parametrize("command", ["embed", "embed-folder", "download", "plot"])
def test_file_that_cannot_be_written_is_found_before_the_work(
    run, state, photos, tmp_path, command, prepare, said
) -> None:
    name = prepare(tmp_path)
    source = {"embed": str(photos / "000.png"), "embed-folder": str(photos)}.get(command, "x")
    with unprivileged() if "Permission" in said else nullcontext():
        code, _, err = run(command, source, "--out", str(tmp_path / name))
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert not state.calls


def test_result_replaces_the_target_of_a_link_and_keeps_its_mode(run, photos, tmp_path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to(target)
    image = str(photos / "000.png")
    assert run("embed", image, "--out", str(tmp_path / "link"))[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert np.load(target).shape == (1, 8)
    assert target.stat().st_mode & 0o777 == 0o640
    assert run("embed", image, "--out", "/dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()


def test_failed_command_leaves_the_old_file(run, photos, tmp_path) -> None:
    (tmp_path / "old.npy").write_bytes(b"old")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"bad")
    assert run("embed", str(bad), "--out", str(tmp_path / "old.npy"))[0] == 1
    assert (tmp_path / "old.npy").read_bytes() == b"old"
    assert not leftovers(tmp_path)


@pytest.fixture
def slow(monkeypatch) -> None:
    """Calls of the command line that fail are not retried for long."""
    connect = Context.connect

    def quick(context: Context) -> Client:
        client = connect(context)
        client._transport.policy = RetryPolicy(attempts=1, stream_patience=0.1)
        return client

    monkeypatch.setattr(Context, "connect", quick)


def test_server_that_disappears_leaves_the_rows(run, server, photos, tmp_path, slow) -> None:
    add = FolderRun.add
    seen: list[int] = []

    def stop_server(self: FolderRun, image: EmbeddedImage) -> None:
        add(self, image)
        seen.append(image.index)
        if len(seen) == 20:
            server.stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderRun, "add", stop_server)
        code, _, err = run("embed-folder", str(photos), "--out", str(tmp_path / "v.npy"))
    if code == 1:
        assert f"the first {len(seen)} of 100 rows are in " in err
        check_kept(tmp_path / "v.part.npy", photos, len(seen))
    else:  # all answers were on their way
        check_kept(tmp_path / "v.npy", photos, 100)


@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signal_keeps_the_rows_and_says_where(
    server, monkeypatch, photos, tmp_path, number, code
) -> None:
    calls, held, embed = itertools.count(1), threading.Event(), Embedding._embed

    def hold(self: Embedding, request: Any) -> Any:
        if next(calls) > 2:
            held.wait(60)
        return embed(self, request)

    monkeypatch.setattr(Embedding, "_embed", hold)
    command = [sys.executable, "-m", "multigrain_client.cli", "embed-folder", "photos"]
    environment = {**os.environ, "MULTIGRAIN_SERVER": server.address}
    with subprocess.Popen(
        [*command, "--out", "v.npy"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            end = time.monotonic() + 60
            while max((path.stat().st_size for path in tmp_path.glob(".*")), default=0) < WHOLE:
                assert time.monotonic() < end
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            held.set()
    assert (process.returncode, out) == (code, "")
    assert "multigrain embed-folder: interrupted; the first 32 of 100 rows are in v.part.npy" in err
    assert "Traceback" not in err
    check_kept(tmp_path / "v.part.npy", photos, 32)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("fails", [False, True])
def test_changing_the_folder_meanwhile_does_not_matter(
    client, photos, tmp_path, monkeypatch, name, fails
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)

    def change(done: int, total: int) -> None:
        if done == 1:
            os.chdir(tmp_path / "other")
        if fails and done == 37:
            raise RuntimeError

    with pytest.raises(RuntimeError) if fails else nullcontext():
        client.embed_folder(photos, name, on_progress=change)
    if fails:
        check_kept(tmp_path / name.replace(".", ".part."), photos, 37)
    else:
        check_kept(tmp_path / name, photos, 100)
    assert not list((tmp_path / "other").iterdir())
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("name", ["v.csv", *KINDS])
def test_rows_of_a_file_that_cannot_be_renamed_are_kept(client, photos, tmp_path, name) -> None:
    out = tmp_path / (name if name in KINDS else "v.npy")

    def stand_in_the_way(done: int, total: int) -> None:
        if done == total:
            (tmp_path / name / "full").mkdir(parents=True)

    with pytest.raises(IsADirectoryError) as caught:
        client.embed_folder(photos, out, on_progress=stand_in_the_way)
    (note,) = caught.value.__notes__
    assert note.startswith("all 100 rows are in ")
    kept = [Path(word) for word in note.removeprefix("all 100 rows are in ").split(" and ")]
    assert len(kept) == (2 if out.suffix == ".npy" else 1)
    if len(kept) == 2:
        kept[1].rename(kept[0].with_suffix(".csv"))
    check_kept(kept[0], photos, 100)
    assert not leftovers(tmp_path)
