"""A real daemon in a process of its own, for tests that start, kill and restart it."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

from multigrain_client import Client
from tests.environment import program_environment


class Daemon:
    """``multigrain-server`` on a free loopback port with its own data directory."""

    def __init__(
        self,
        folder: Path,
        roots: Sequence[Path] = (),
        flags: Sequence[str] = (),
        module: str = "multigrain_server.main",
    ) -> None:
        self._module = module
        self.data_dir = folder / "data"
        self.log = folder / "daemon.log"
        self._roots = list(roots)
        self._flags = list(flags)
        self._port = "0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Daemon:
        """Starts it, and returns when it takes calls."""
        address = self.data_dir / "address"
        address.unlink(missing_ok=True)
        self.start_process()
        deadline = time.monotonic() + 60
        while not address.exists() or not address.read_text().strip():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the daemon did not start:\n{self.log.read_text()}")
            time.sleep(0.05)
        return self

    def start_process(self) -> None:
        """Starts it, and does not wait for anything."""
        command = [
            sys.executable,
            "-m",
            self._module,
            f"--data-dir={self.data_dir}",
            f"--listen=127.0.0.1:{self._port}",
            "--http-listen=127.0.0.1:0",
            *(f"--data-root={root}" for root in self._roots),
            *self._flags,
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=program_environment()
            )

    def fix_port(self, port: str) -> None:
        """Later starts listen on this port, so that clients find the daemon again."""
        self._port = port

    @property
    def address(self) -> str:
        return (self.data_dir / "address").read_text().strip()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def client(self) -> Client:
        return Client(self.address)

    @property
    def http_address(self) -> str:
        """HOST:PORT of /metrics."""
        found: list[str] = re.findall(r"listening .*http=(\S+)", self.log.read_text())
        return found[-1]

    def metrics(self) -> str:
        """The /metrics page."""
        # Without the proxy of the environment.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.http_address}/metrics", timeout=10) as page:
            text: str = page.read().decode()
        return text

    def kill(self) -> None:
        """SIGKILL, as a crash or the kernel's out-of-memory killer would end it."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def end(self) -> None:
        """Ends the daemon and whatever jobs it left running."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        for process in processes_below(self.data_dir):
            process.kill()


def open_to_other_users(folder: Path) -> list[str]:
    """The folder and what is below it, as far as other users could read or change it."""
    found = []
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o077:
            found.append(f"{path}: {stat.filemode(status.st_mode)}")
    return found


def processes_below(data_dir: Path) -> list[psutil.Process]:
    """Processes of the folder's jobs and engines, told by command line or environment."""
    found = []
    marker = str(data_dir)
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            environment = process.environ()
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if process.pid == os.getpid():
            continue
        named = any(marker in part for part in command)
        marked = any(marker in value for value in environment.values())
        if named or marked:
            found.append(process)
    return found


def wait_for_no_processes(data_dir: Path, seconds: float = 60) -> None:
    """Fails if a process of the data directory is still there after ``seconds``."""
    deadline = time.monotonic() + seconds
    while left := processes_below(data_dir):
        if time.monotonic() > deadline:
            described = [(p.pid, p.cmdline()) for p in left if p.is_running()]
            raise AssertionError(f"processes left behind: {described}")
        time.sleep(0.1)
