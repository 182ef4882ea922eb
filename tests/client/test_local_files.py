"""Pipes, devices and standard streams in place of files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from multigrain.v1 import model_pb2
from multigrain_client import ImagesFailed, InvalidRequest
from multigrain_client.images import MAX_BYTES


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A named pipe that nobody writes to."""
    os.mkfifo(tmp_path / "f.tar")
    return tmp_path / "f.tar"


def bundle_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("model.json"), io.BytesIO())
        member = tarfile.TarInfo("model.onnx")
        member.size = 300_000
        tar.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


@pytest.fixture
def pipe_of():
    """The path of an open pipe with these bytes, as of a process substitution."""
    threads = []

    def make(data: bytes) -> str:
        reading, writing = os.pipe()

        def write() -> None:
            try:
                with open(writing, "wb") as file:
                    file.write(data)
            except BrokenPipeError:
                pass

        threads.append((threading.Thread(target=write), reading))
        threads[-1][0].start()
        return f"/dev/fd/{reading}"

    yield make
    for thread, reading in threads:
        os.close(reading)
        thread.join(30)


def test_only_regular_files_are_read_as_images(client, state, fifo, tmp_path):
    for path, what in [
        (Path("/dev/zero"), "a device"), (fifo, "a pipe"), (tmp_path, "a folder"),
    ]:  # fmt: skip
        with pytest.raises(ImagesFailed, match=f"it is {what} and not a regular file"):
            client.embed([path])
    assert not state.calls


def test_a_file_larger_than_a_call_is_not_read(client, state, tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ImagesFailed, match=f"has {MAX_BYTES + 1} bytes; at most {MAX_BYTES}"):
        client.embed([tmp_path / "a.png"])
    assert not state.calls


@pytest.mark.parametrize("path", ["/dev/zero", "{fifo}"])
def test_commands_refuse_what_is_no_regular_file(run, state, fifo, path):
    path = path.format(fifo=fifo)
    for words in (["embed"], ["classify"], ["import"]):
        code, _, err = run(*words, path)
        assert code != 0
        assert "and not a regular file" in err
        assert err.count("\n") == 1
    assert not state.calls.get("Embed")


def test_an_archive_is_imported_from_a_pipe(client, state, pipe_of):
    client.import_model(pipe_of(bundle_tar()), name="birds")
    assert state.calls["ImportModel"] == 1


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "gives no uncompressed tar"),
        (b"\0" * 2**20, "gives no uncompressed tar"),
        (b"x" * 2**20, "gives no uncompressed tar"),
        (b"\x1f\x8b" + b"x" * 2**20, "gunzip"),
    ],
)
def test_a_pipe_without_an_archive_is_not_read_to_its_end(client, pipe_of, data, problem):
    with pytest.raises(InvalidRequest, match=problem):
        client.import_model(pipe_of(data))


def process(server, *words: str, **options) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "multigrain_client.cli", *words],
        env={**os.environ, "MULTIGRAIN_SERVER": server.address},
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.process
@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_import_reads_standard_input(server, state, name):
    importing = process(server, "import", name, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    _, err = importing.communicate(bundle_tar(), timeout=60)
    assert importing.returncode == 0, err
    assert state.calls["ImportModel"] == 1


@pytest.mark.process
@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
@pytest.mark.parametrize("target", ["pipe", "file"])
def test_files_are_written_to_standard_output(server, state, tmp_path, name, target):
    state.models["fake@1"] = model_pb2.Model(name="fake", version=1)
    state.bundle = b"a tar archive" * 100_000
    (tmp_path / "a.png").write_bytes(b"12345678")
    for words in (["download", "fake@1"], ["embed", str(tmp_path / "a.png")]):
        with (tmp_path / "result").open("w+b") as file:
            stdout = subprocess.PIPE if target == "pipe" else file
            writing = process(server, *words, "--out", name, stdout=stdout)
            out, err = writing.communicate(timeout=60)
            assert writing.returncode == 0, err
            out = (tmp_path / "result").read_bytes() if target == "file" else out
        if words[0] == "download":
            assert out == state.bundle
        else:
            assert np.load(io.BytesIO(out)).shape[0] == 1
        assert b"/dev/stdout" in err


@pytest.mark.process
def test_a_reader_that_leaves_ends_a_download_as_sigpipe_does(server, state):
    state.models["fake@1"] = model_pb2.Model(name="fake", version=1)
    state.bundle = b"a tar archive" * 100_000
    reading, writing = os.pipe()
    download = process(server, "download", "fake@1", "--out", "-", stdout=writing)
    os.close(writing)
    os.read(reading, 6)
    os.close(reading)
    _, err = download.communicate(timeout=60)
    assert (download.returncode, err) == (141, b"")


def test_arguments_in_utf_8_are_text_in_every_locale(run, state):
    """Python decodes them so, if the locale has ASCII only."""
    name = "\u00fc\u2713".encode().decode("ascii", "surrogateescape")
    code, _, err = run("train", "--preset", "x", "--name", name, "--label", f"{name}={name}")
    assert code == 0, err
    assert state.jobs["job-1"].name == "\u00fc\u2713"
    assert dict(state.jobs["job-1"].labels) == {"\u00fc\u2713": "\u00fc\u2713"}
