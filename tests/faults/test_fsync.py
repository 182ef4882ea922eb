"""The order in which things reach the disk, as the kernel is asked for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.disk import CALLS, Disk

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]


def test_what_is_reported_as_done_is_on_disk_contents_before_names(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace (apt-get install strace)")
    trace = tmp_path / "trace"
    (tmp_path / "root").mkdir()
    command = ["strace", "-f", "-y", "-s", "0", "-o", str(trace), "-e", f"trace={CALLS}"]
    program = [sys.executable, "-m", "tests.faults.written", str(tmp_path / "root")]
    ran = subprocess.run(
        [*command, *program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if "Operation not permitted" in ran.stderr and "ptrace" in ran.stderr.lower():
        pytest.skip(f"strace may not trace here: {ran.stderr.splitlines()[0]}")
    assert ran.returncode == 0, ran.stderr
    disk = Disk(tmp_path / "root" / "data")
    for line in trace.read_text().splitlines():
        disk.take(line)
    assert disk.seen[-1] == "end"
    assert len(disk.seen) == 10
    # Only the lock of a living daemon: it need not outlive the machine.
    faults = [fault for fault in disk.faults if str(disk.root / "daemon.lock") not in fault]
    assert not faults, "\n".join(faults)
