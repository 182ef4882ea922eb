"""The data directory: what stands in its way, its lock, and who else can use it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multigrain_server import data_dir
from multigrain_server.config import ServerConfig
from multigrain_server.data_dir import DataDir, DataDirError, exposures
from multigrain_server.doctor import machine
from multigrain_server.doctor.finding import Level


@pytest.mark.parametrize("at", ["data", "data/jobs", "data/models", "data/engines", "."])
@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path, at: str, kind: str) -> None:
    home = tmp_path / "home"
    path = home / at
    path.parent.mkdir(exist_ok=True, parents=True)
    if kind == "file":
        path.write_text("precious")
    else:
        path.symlink_to("nowhere")
    with pytest.raises(DataDirError) as caught:
        DataDir(home / "data")
    message = str(caught.value)
    assert f"{path} is not a folder but a file or a broken link" in message
    assert "give another --data-dir" in message
    assert "File exists" not in message
    assert path.is_symlink() or path.read_text() == "precious"


def test_a_link_to_a_folder_is_a_data_directory(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").symlink_to("elsewhere")
    DataDir(tmp_path / "data").close()
    assert (tmp_path / "elsewhere" / "jobs").is_dir()


HOLDER = """
import fcntl, sys, time
fcntl.flock = lambda *_: None
from pathlib import Path
from multigrain_server.data_dir import DataDir
data = DataDir(Path(sys.argv[1]))
data.write_address("127.0.0.1:1")
print("ready", flush=True)
sys.stdin.read()
data.close()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another daemon's process, where locks are granted to everyone."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


@pytest.mark.process
def test_where_locks_do_not_work_a_second_daemon_is_refused(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(DataDirError, match=rf"pid {holder.pid} on \S+\) uses .* although"):
        DataDir(tmp_path / "data")
    assert (tmp_path / "data" / "address").read_text() == "127.0.0.1:1\n"
    assert holder.poll() is None
    holder.kill()
    holder.wait()
    second = DataDir(tmp_path / "data")
    second.write_address("127.0.0.1:2")
    assert (tmp_path / "data" / "address").read_text() == "127.0.0.1:2\n"
    second.close()
    assert not (tmp_path / "data" / "address").exists()


@pytest.mark.process
def test_the_address_of_another_daemon_is_not_removed(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    (tmp_path / "data" / "address").write_text("127.0.0.1:2\n")
    assert holder.stdin is not None
    holder.stdin.close()
    assert holder.wait(60) == 0
    assert (tmp_path / "data" / "address").read_text() == "127.0.0.1:2\n"


def test_a_reused_pid_holds_no_lock(tmp_path: Path) -> None:
    (tmp_path / "daemon.lock").write_text(f"{os.getppid()} {socket.gethostname()} boot/1\n")
    DataDir(tmp_path).close()
    assert (tmp_path / "daemon.lock").read_text() == ""


@pytest.mark.parametrize("content", ["", "x", "9" * 4000, "-1 h s", "\0" * 600, "1", "5 h"])
def test_a_damaged_lock_file_refuses_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / "daemon.lock").write_text(content)
    DataDir(tmp_path).close()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no locks, and little patience."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(data_dir, "TOUCH_SECONDS", 0.2)


def test_a_daemon_of_another_host_is_seen_by_its_touches(tmp_path: Path, no_locks: None) -> None:
    first = DataDir(tmp_path)
    lock = tmp_path / "daemon.lock"
    lock.write_text(f"{os.getpid()} elsewhere boot/1\n")
    with pytest.raises(DataDirError, match=rf"pid {os.getpid()} on elsewhere\) uses"):
        DataDir(tmp_path)
    assert "elsewhere" in lock.read_text()
    first.close()
    # It has crashed: nobody touches the file any more.
    lock.write_text("7 elsewhere boot/1\n")
    DataDir(tmp_path).close()


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_a_lock_that_is_no_file_is_refused_and_not_followed(tmp_path: Path, kind: str) -> None:
    lock, precious = tmp_path / "data" / "daemon.lock", tmp_path / "precious"
    precious.write_text("precious")
    lock.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(lock)
    elif kind == "link":
        lock.symlink_to(precious)
    else:
        lock.mkdir()
    with pytest.raises(DataDirError, match=r"data"):
        DataDir(lock.parent)
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("umask", [0, 0o022])
def test_folders_are_closed_to_other_users_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        DataDir(tmp_path / "data").close()
    finally:
        os.umask(before)
    for path in (tmp_path / "data", *(tmp_path / "data").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert not list(exposures(tmp_path / "data"))


@pytest.mark.parametrize(
    ("at", "mode", "problem"),
    [
        (".", 0o707, "other users can write in"),
        ("jobs", 0o770, "other users can write in"),
        ("models", 0o755, ""),  # nobody else gets as far
        (".", 0o755, ""),
    ],
)
def test_existing_folders_that_others_can_change_are_reported(
    tmp_path: Path, at: str, mode: int, problem: str
) -> None:
    data = tmp_path / "data"
    DataDir(data).close()
    (data / at).chmod(mode)
    found = list(exposures(data))
    assert bool(found) == bool(problem)
    for message, fix in found:
        assert problem in message
        assert fix.startswith("chmod -R")
    findings = [*machine.permissions(ServerConfig(data_dir=data))]
    assert [finding.level for finding in findings] == [Level.WARN] * len(found)


def test_existing_folders_that_others_can_read_are_reported(tmp_path: Path) -> None:
    data = tmp_path / "data"
    DataDir(data).close()
    for folder in (data, data / "jobs"):
        folder.chmod(0o755)
    ((message, fix),) = exposures(data)
    assert message == f"other users can read {data / 'jobs'}"
    assert fix == f"chmod -R go= {data}"
