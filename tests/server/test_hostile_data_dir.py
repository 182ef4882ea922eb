"""Hostile files in the data directory: the daemon starts, or says which file is in its way."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.specs.data_roots import PathRoots
from multigrain_server.data_dir import DataDir, DataDirError
from multigrain_server.database import open_index
from multigrain_server.jobs.store import SCHEMA, JobStore
from multigrain_server.models.registry import ModelVersion
from multigrain_server.models.state import LoadedRow, ServingState
from tests.hostile_files import KINDS, alarm, put


@pytest.mark.parametrize("name", ["state.db", "state.db-wal", "state.db-shm", "state.db-journal"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_index_is_moved_aside(tmp_path: Path, name: str, kind: str) -> None:
    put(tmp_path / name, kind)
    with alarm(), capture_logs():
        for _ in range(2):
            database = open_index(tmp_path / "state.db", [SCHEMA])
            assert JobStore(database).counts() == {}
            database.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_serving_state_is_moved_aside(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "serving.json"
    row = LoadedRow(version=ModelVersion("m", 1), runtime="")
    for _ in range(2):  # the second time, the name of the moved file is taken
        put(path, kind)
        with alarm(), capture_logs() as logs:
            state = ServingState(path)
            assert state.loaded() == []
            state.add_loaded(row)
            assert ServingState(path).loaded() == [row]
        if kind not in ("broken", "unreadable"):
            assert [log["file"] for log in logs] == ["serving.json"]
        path.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_temporary_file_is_replaced(tmp_path: Path, kind: str) -> None:
    put(tmp_path / ".tmp-serving.json", kind)
    row = LoadedRow(version=ModelVersion("m", 1), runtime="")
    with alarm():
        if kind == "folder":
            with pytest.raises(MultigrainError, match="directory") as caught:
                ServingState(tmp_path / "serving.json").add_loaded(row)
            assert caught.value.kind is ErrorKind.STORAGE
            return
        ServingState(tmp_path / "serving.json").add_loaded(row)
        assert ServingState(tmp_path / "serving.json").loaded() == [row]


@pytest.mark.parametrize("name", ["daemon.lock", "address", ".tmp-address"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_lock_or_address_is_named_or_replaced(
    tmp_path: Path, name: str, kind: str
) -> None:
    tmp_path.joinpath("jobs").mkdir()
    put(tmp_path / name, kind)
    refused = name == "daemon.lock" and kind in (
        *("pipe", "socket", "folder", "endless", "null", "broken", "loop"),
    )
    with alarm(), contextlib.ExitStack() as stack:
        if refused:
            stack.enter_context(pytest.raises(DataDirError, match=name))
        data = DataDir(tmp_path)
        if not (kind == "folder" and name != "daemon.lock"):
            data.write_address("127.0.0.1:1")
        data.close()


def test_the_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    data = tmp_path / "data"
    data.mkdir()
    (data / "daemon.lock").symlink_to(victim)
    with pytest.raises(DataDirError, match=r"daemon\.lock"):
        DataDir(data)
    assert victim.read_text() == "kept"


def test_the_folders_of_the_data_directory_may_be_links(tmp_path: Path) -> None:
    """As on a volume for models: what is in them can be named and read all the same."""
    volume, data = tmp_path / "volume", tmp_path / "data"
    volume.mkdir()
    data.mkdir()
    (data / "models").symlink_to(volume)
    directory = DataDir(data)
    roots = PathRoots([data, directory.models])
    (volume / "m").mkdir()
    assert roots.check(str(data / "models" / "m"), "spec.weights.checkpoint_path") == volume / "m"
    directory.close()
