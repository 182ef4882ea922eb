"""Why the daemon cannot listen on an address, and what to do."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from multigrain_server.address import ListenAddress
from tests.unprivileged import unprivileged


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        problem = ListenAddress.parse(f"127.0.0.1:{port}").problem()
    assert problem == (
        "Address already in use; stop the process that listens there, or choose another"
    )


def test_an_address_of_another_machine_is_reported() -> None:
    problem = ListenAddress.parse("192.0.2.1:0").problem()
    assert problem == "Cannot assign requested address; choose an address of this machine"


def test_a_privileged_port_is_reported() -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    problem = ListenAddress.parse("127.0.0.1:80").explain(error)
    assert problem == "Permission denied; choose a port from 1024 on"


def test_a_free_address_has_no_problem(tmp_path: Path) -> None:
    assert ListenAddress.parse("127.0.0.1:0").problem() == ""
    assert ListenAddress.parse(f"unix:{tmp_path}/s").problem() == ""
    assert list(tmp_path.iterdir()) == []


def test_a_socket_path_that_is_too_long_is_reported(tmp_path: Path) -> None:
    problem = ListenAddress.parse(f"unix:{tmp_path}/{'s' * 120}").problem()
    assert "too long" in problem


def test_an_unwritable_folder_is_named(open_path: Path) -> None:
    folder = open_path / "run"
    folder.mkdir(mode=0o500)
    with unprivileged() as uid:
        problem = ListenAddress.parse(f"unix:{folder}/s").problem()
    assert problem == f"Permission denied; let uid {uid} write in {folder}"


@pytest.mark.parametrize("there", ["file", "socket"])
def test_existing_files_at_a_socket_path_remain(tmp_path: Path, there: str) -> None:
    path = tmp_path / "s"
    if there == "file":
        path.write_text("precious")
    else:
        socket.socket(socket.AF_UNIX).bind(str(path))
    assert "already in use" in ListenAddress.parse(f"unix:{path}").problem()
    assert path.exists()
