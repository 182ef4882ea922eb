"""A runner is recognized by its pid and start time, even after the clock was set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from multigrain.jobs.runner_identity import RunnerIdentity


def test_a_process_is_recognized_after_the_clock_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: child.pid)
            RunnerIdentity.of_this_process().save(tmp_path / "runner.json")
        # Setting the clock shifts the kernel's btime, and with it psutil's create_time.
        real = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) + 3600)
        found = RunnerIdentity.load(tmp_path / "runner.json")
        assert found is not None
        process = found.process()
        assert process is not None
        assert process.pid == child.pid
        assert replace(found, started=found.started + "0").process() is None
    finally:
        child.communicate(b"\n")
    assert found.process() is None


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b"\xff", b"[" * 100_000, json.dumps({"pid": True, "started": "", "written": ""})],
)
def test_an_invalid_file_is_not_an_identity(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "runner.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert RunnerIdentity.load(path) is None
    assert RunnerIdentity.load(tmp_path) is None
