"""Which process is the runner of a job: a pid alone may belong to another process by now."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from multigrain.events.log import utc_now

_STARTED_FIELD = 22  # of /proc/PID/stat: clock ticks from the start of the machine


@dataclass(frozen=True)
class RunnerIdentity:
    """Content of ``runner.json``.

    Attributes:
        started: when the process started, as ``_started`` tells it: by a clock that nobody sets.
        written: the time of day, RFC 3339, for who reads the file.
    """

    pid: int
    started: str
    written: str

    @classmethod
    def of_this_process(cls) -> RunnerIdentity:
        return cls(os.getpid(), _started(os.getpid()), utc_now())

    @classmethod
    def load(cls, path: Path) -> RunnerIdentity | None:
        """None if there is no such file, or not a whole one."""
        try:
            found = cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        # psutil would take true for pid 1, and raise for what is no number.
        return found if type(found.pid) is int and found.pid > 0 else None

    def save(self, path: Path) -> None:
        """Writes the file aside and renames it: a reader sees the old one or the new one."""
        aside = path.with_name(f".{path.name}.{self.pid}")
        aside.write_text(json.dumps(asdict(self)))
        os.replace(aside, path)

    def process(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            if _started(self.pid) == self.started and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except (psutil.NoSuchProcess, OverflowError):
            pass
        return None


def _started(pid: int) -> str:
    """When a process started: ``BOOT/TICKS``, the start of the machine and ticks since then.

    Not ``psutil.Process.create_time()`` where it can be helped: that is computed from the time of
    day, so that a clock that is set right makes another process of the same one.

    Raises:
        psutil.NoSuchProcess: if there is none.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name, in parentheses, may hold anything: what is behind its last one counts.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return f"{boot}/{fields[_STARTED_FIELD - 3]}"
    except (OSError, IndexError):
        return f"{psutil.Process(pid).create_time():.0f}"  # not Linux, or the process has gone
