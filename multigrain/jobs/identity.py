"""Which process is the runner of a job: a pid alone may belong to another process by now."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from multigrain.events.log import utc_now

_CLOCK_SECONDS = 2.0  # the start time is computed from the clock, which may have been corrected


@dataclass(frozen=True)
class RunnerIdentity:
    """Content of ``runner.json``. ``start_time`` is ``psutil.Process.create_time()``, in seconds
    since 1970; ``written`` is RFC 3339."""

    pid: int
    start_time: float
    written: str

    @classmethod
    def of_this_process(cls) -> RunnerIdentity:
        return cls(os.getpid(), psutil.Process().create_time(), utc_now())

    @classmethod
    def load(cls, path: Path) -> RunnerIdentity | None:
        """None if there is no such file, or not a whole one."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def save(self, path: Path) -> None:
        """Writes the file aside and renames it: a reader sees the old one or the new one."""
        aside = path.with_name(f".{path.name}.{self.pid}")
        aside.write_text(json.dumps(asdict(self)))
        os.replace(aside, path)

    def process(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.start_time) < _CLOCK_SECONDS
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except psutil.NoSuchProcess:
            pass
        return None
