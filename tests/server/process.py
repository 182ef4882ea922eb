"""A daemon in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


class DaemonProcess:
    """Started with ``--listen 127.0.0.1:0`` on a data directory; ends only when told."""

    def __init__(
        self,
        data_dir: Path,
        flags: Sequence[str] = (),
        module: str = "multigrain_server.main",
    ) -> None:
        self.data_dir = data_dir
        self.log = data_dir.parent / f"daemon-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [
                    *(sys.executable, "-m", module),
                    *("--data-dir", str(data_dir), "--listen", "127.0.0.1:0"),
                    *("--http-listen", "127.0.0.1:0", "--log-format", "json", *flags),
                ],
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> str:
        """The address, once it takes calls."""
        deadline = time.monotonic() + 30
        address = self.data_dir / "address"
        while time.monotonic() < deadline:
            # A file of an earlier daemon may lie there: the log says whose it is.
            if address.exists() and address.read_text().strip() in self.log.read_text():
                return address.read_text().strip()
            if self.popen.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"the daemon did not start:\n{self.log.read_text()}")

    def http_address(self) -> str:
        """Of the status page and /metrics, once it is ready."""
        lines = map(json.loads, self.log.read_text().splitlines())
        return next(str(line["http"]) for line in lines if line.get("event") == "listening")

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
