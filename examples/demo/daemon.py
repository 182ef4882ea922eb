"""The demo's daemon, on a free loopback port."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from multigrain.processes import child_environment
from multigrain_client.errors import MissingPackage, ServerError

START_SECONDS = 60.0
# The daemon drains calls in flight (30 s by default) and stops its engines.
STOP_SECONDS = 60.0
LOG_LINES = 15


class Daemon:
    """Starts on entry and is stopped with SIGTERM on exit.

    Args:
        data_dir: new or empty folder for its state.
        data_roots: folders that requests may name paths in.
        log: file for its standard output and error.
    """

    def __init__(self, data_dir: Path, data_roots: Sequence[Path], log: Path) -> None:
        self._data_dir = data_dir
        self._data_roots = data_roots
        self._log = log
        self.exit_code: int | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                env=child_environment(os.environ),
                cwd=self._log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal goes to the demo only: it cancels its job first.
                start_new_session=True,
            )
        try:
            self.address = self._wait_for_address()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def command(self) -> list[str]:
        """The daemon's command line.

        Raises:
            MissingPackage: if it is not installed.
        """
        # Prefer the one next to this interpreter: PATH may lead to another installation.
        beside = Path(sys.executable).with_name("multigrain-server")
        program = str(beside) if beside.exists() else shutil.which("multigrain-server")
        if program is None:
            raise MissingPackage("the demo needs the server: pip install '.[server,demo]'")
        command = [
            program,
            "--data-dir",
            str(self._data_dir),
            "--listen",
            "127.0.0.1:0",
            "--http-listen",
            "127.0.0.1:0",
        ]
        for root in self._data_roots:
            command += ["--data-root", str(root)]
        return command

    def _wait_for_address(self) -> str:
        file = self._data_dir / "address"
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            code = self._process.poll()
            if code is not None:
                raise ServerError(f"the daemon exited with code {code}:\n{self._tail()}")
            try:
                address = file.read_text().strip()
            except (FileNotFoundError, NotADirectoryError):
                address = ""
            if address:
                return address
            time.sleep(0.02)
        raise ServerError(f"the daemon was not ready after {START_SECONDS:g} s:\n{self._tail()}")

    def _stop(self) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.exit_code = self._process.returncode

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])
