"""What a store has acknowledged is on the disk, as the kernel was asked for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environment import program_environment
from tests.faults.disk import CALLS, Disk

pytestmark = pytest.mark.process

# SQLite's journal and LanceDB's hint of the newest version need not outlive the machine.
TEMPORARY = ("items.sqlite-journal", "latest_version_hint.json", ".tmp")


def test_what_is_acknowledged_is_on_the_disk(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace (apt-get install strace)")
    trace, root = tmp_path / "trace", tmp_path / "root"
    root.mkdir()
    command = ["strace", "-f", "-y", "-s", "0", "-o", str(trace), "-e", f"trace={CALLS}"]
    ran = subprocess.run(
        [*command, sys.executable, "-m", "tests.index.written", str(root)],
        env=program_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if "Operation not permitted" in ran.stderr and "ptrace" in ran.stderr.lower():
        pytest.skip(f"strace may not trace here: {ran.stderr.splitlines()[0]}")
    assert ran.returncode == 0, ran.stderr
    disk = Disk(root)
    for line in trace.read_text().splitlines():
        disk.take(line)
    assert disk.seen[-1] == "lance end"
    assert len(disk.seen) == 12
    # Files may be renamed before they are synchronized: they are, before the acknowledgment.
    faults = [
        fault
        for fault in disk.faults
        if "is not on the disk" in fault and not any(name in fault for name in TEMPORARY)
    ]
    assert not faults, "\n".join(faults)
