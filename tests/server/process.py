"""A daemon in a process of its own."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.environment import program_environment


def steady_port() -> int:
    """A free port that the kernel assigns to no other connection while the daemon is down."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)  # below the ephemeral ports
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class DaemonProcess:
    """A daemon on a data directory, by default on a free port. Runs until ``end``."""

    def __init__(
        self,
        data_dir: Path,
        flags: Sequence[str] = (),
        module: str = "multigrain_server.main",
        **options: Any,
    ) -> None:
        """Starts it; the options are those of ``subprocess.Popen``."""
        self.data_dir = data_dir
        self.log = data_dir.parent / f"daemon-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [
                    *(sys.executable, "-m", module),
                    *("--data-dir", str(data_dir), "--listen", "127.0.0.1:0"),
                    *("--http-listen", "127.0.0.1:0", "--log-format", "json", *flags),
                ],
                **{"stdout": log, "stderr": log, "env": program_environment(), **options},
            )

    def wait_ready(self) -> str:
        """Waits until it accepts calls; returns its address."""
        deadline = time.monotonic() + 30
        address = self.data_dir / "address"
        while time.monotonic() < deadline:
            # It may be the file of an earlier daemon: the address must be in this daemon's log.
            written = address.exists() and address.read_text().strip()
            if written and written in self.log.read_text():
                return written
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
