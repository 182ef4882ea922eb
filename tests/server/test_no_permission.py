"""A daemon that runs as the wrong user: it says so at once, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from multigrain_server.access.tokens import TokenFileError, read_tokens
from multigrain_server.config import ServerConfig
from multigrain_server.data_dir import DataDir, DataDirError
from multigrain_server.doctor.machine import disk
from multigrain_server.models.registry import BundleRegistry, ModelReference
from multigrain_server.models.state import ServingState
from multigrain_server.settings_sources import ConfigError, parse
from tests.engine.bundles import write_bundle
from tests.unprivileged import unprivileged


@pytest.mark.parametrize(
    ("closed", "mode"), [("", 0o555), ("jobs", 0), ("jobs", 0o555), ("models", 0)]
)
def test_a_data_directory_of_another_user_is_refused(
    open_path: Path, closed: str, mode: int
) -> None:
    folders = [open_path / "data", open_path / "data/jobs", open_path / "data/models"]
    for folder in folders if closed else folders[:1]:
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
    (open_path / "data" / closed).chmod(mode)
    named = open_path / "data" / (closed or "jobs")
    with unprivileged() as uid, pytest.raises(DataDirError) as caught:
        DataDir(open_path / "data")
    assert str(caught.value) == (
        f"the data directory {open_path}/data cannot be used: Permission denied; let uid {uid} "
        f"write in {named}, or give --data-dir"
    )


def test_bundles_can_be_on_a_read_only_volume(open_path: Path) -> None:
    for folder in (open_path, open_path / "jobs", open_path / "models"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
    (open_path / "models").chmod(0o555)
    with unprivileged():
        DataDir(open_path).close()


def test_unreadable_serving_state_is_not_moved_aside(open_path: Path) -> None:
    path = open_path / "serving.json"
    ServingState(path).set_default("imagenet")
    path.chmod(0)
    open_path.chmod(0o777)
    with unprivileged() as uid, pytest.raises(DataDirError, match=f"let uid {uid} read it"):
        ServingState(path)
    path.chmod(0o600)
    assert ServingState(path).default == "imagenet"
    assert [p.name for p in open_path.iterdir()] == ["serving.json"]


@pytest.mark.parametrize("closed", ["tiny", "tiny/1", "tiny/1/model.json"])
def test_unreadable_bundle_is_logged_once_and_found_once_readable(
    open_path: Path, closed: str
) -> None:
    write_bundle(open_path, version=1)
    registry = BundleRegistry(open_path)
    path = open_path / closed
    mode = path.stat().st_mode
    path.chmod(0)
    with unprivileged() as uid, capture_logs() as lines:
        assert registry.entries() == {}
        with pytest.raises(Exception, match="cannot use what is in it: see the server's log"):
            registry.find(ModelReference("tiny", None))
        with pytest.raises(Exception, match="there are no models yet"):
            registry.find(ModelReference("other", None))
    assert [line["log_level"] for line in lines] == ["warning"]
    assert closed in lines[0]["path"]
    assert f"Permission denied; let uid {uid} read it" in lines[0]["reason"]
    path.chmod(mode)
    assert len(registry.entries()) == 1


def test_unreadable_configuration_files_are_named_with_the_user(open_path: Path) -> None:
    path = open_path / "file.yaml"
    path.write_text("{}")
    path.chmod(0)
    with unprivileged() as uid:
        with pytest.raises(ConfigError, match=f"file.yaml: Permission denied; let uid {uid} read"):
            parse(["--config", str(path)], {})
        with pytest.raises(TokenFileError, match=f"Permission denied; let uid {uid} read it"):
            read_tokens(path)


@pytest.mark.parametrize(
    ("closed", "below"), [("jobs", ""), ("models", ""), ("", ""), ("", "new/data")]
)
def test_doctor_finds_what_prevents_the_start(open_path: Path, closed: str, below: str) -> None:
    for folder in (open_path, open_path / "jobs", open_path / "models"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
    (open_path / closed).chmod(0)
    with unprivileged() as uid:
        first, *more = disk(ServerConfig(data_dir=open_path / below))
    assert not more
    assert first.message.startswith("not writable: Permission denied: ")
    assert str(open_path / closed) in first.message
    assert first.fix == f"chown it to uid {uid}"
