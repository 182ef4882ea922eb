"""A process in a sandbox cannot do what an attacker in it would: each attempt is made."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multigrain.processes import child_environment, python_command
from multigrain.sandbox.apply import MEASURES, probe
from tests.sandbox.attack import HARMLESS, chosen

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    bool(probe().missing), reason="; ".join(map(str, probe().missing)) or "complete"
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """What ``tests.sandbox.attack`` attacks."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "model.json").write_text("{}")
    (tmp_path / "results").mkdir()
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    with (
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
    ):
        named.bind(str(tmp_path / "socket"))
        named.listen()
        datagrams.bind(str(tmp_path / "datagrams"))
        abstract.bind(f"\0multigrain-attack-{os.getpid()}")
        abstract.listen()
        yield tmp_path


def attack(name: str, folder: Path) -> dict[str, Any]:
    """Runs the attempts in a process with the sandbox ``name``."""
    done = subprocess.run(
        python_command("tests.sandbox.attack", name, str(folder)),
        env=child_environment({**os.environ, "PYTHONPATH": str(ROOT)}),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("name", ["engine", "decoder", "template", "worker"])
def test_every_attempt_in_a_sandbox_is_refused(name: str, folder: Path) -> None:
    answer = attack(name, folder)
    assert answer["found"] == dict.fromkeys(chosen(name, folder), "refused")
    measures = {one["name"]: one["active"] for one in answer["report"]["measures"]}
    assert measures == dict.fromkeys(MEASURES, True)
    assert (folder / "outside").read_text() == "secret"
    assert not (folder / "new").exists()


def test_the_attempts_work_without_a_sandbox(folder: Path) -> None:
    assert attack("", folder)["found"] == dict.fromkeys(HARMLESS, "succeeded")
