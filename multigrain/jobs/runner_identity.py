"""Which process runs a job: a pid alone could have been reused by another process."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from multigrain.events.log import utc_now
from multigrain.files import read_json
from multigrain.storage import replace_file

_MAX_BYTES = 1 << 16
_STARTED_FIELD = 22  # of /proc/PID/stat: clock ticks since the boot


@dataclass(frozen=True)
class RunnerIdentity:
    """Content of ``runner.json``.

    Attributes:
        pid: of the runner.
        started: when the process started, independent of the system clock: see ``process_start``.
        written: time of day, RFC 3339, for people who read the file.
    """

    pid: int
    started: str
    written: str

    @classmethod
    def of_this_process(cls) -> RunnerIdentity:
        """The identity of the calling process."""
        return cls(os.getpid(), process_start(os.getpid()), utc_now())

    @classmethod
    def load(cls, path: Path) -> RunnerIdentity | None:
        """Reads the file; None if it does not exist or is damaged."""
        try:
            found = cls(**read_json(path, max_bytes=_MAX_BYTES))
        except (OSError, ValueError, TypeError):
            return None
        # psutil accepts True as pid 1, and raises for other types.
        return found if type(found.pid) is int and found.pid > 0 else None

    def save(self, path: Path) -> None:
        """Writes the file atomically."""
        replace_file(path, json.dumps(asdict(self)).encode())

    def process(self) -> psutil.Process | None:
        """The process, if it is still running."""
        try:
            process = psutil.Process(self.pid)
            if process_start(self.pid) == self.started and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except (psutil.NoSuchProcess, OverflowError):
            pass
        return None


def process_start(pid: int) -> str:
    """When a process started: ``BOOT/TICKS``, the boot id and clock ticks since the boot.

    ``psutil.Process.create_time()`` is derived from the system clock: after the clock is set, the
    same process would look like another one. It is used only where there is no /proc.

    Raises:
        psutil.NoSuchProcess: if there is no such process.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The process name, in parentheses, may contain anything, even a parenthesis.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return f"{boot}/{fields[_STARTED_FIELD - 3]}"
    except (OSError, IndexError):
        return f"{psutil.Process(pid).create_time():.0f}"  # not Linux, or the process has ended
