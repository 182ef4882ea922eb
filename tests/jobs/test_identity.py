"""A runner is known again by its pid and by when it started, whatever the clock says."""

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


def test_a_process_is_known_again_after_the_clock_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: child.pid)
            RunnerIdentity.of_this_process().save(tmp_path / "runner.json")
        # What the kernel's btime, and with it psutil's create_time, does when the clock is set.
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
def test_a_file_that_names_nobody_is_no_identity(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "runner.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert RunnerIdentity.load(path) is None
    assert RunnerIdentity.load(tmp_path) is None
