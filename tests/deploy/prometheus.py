"""A real Prometheus on loopback, with the rules of deploy/."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import yaml

from tests.deploy.named import DEPLOY

SCRAPE_SECONDS = 1


def needs(tool: str) -> str:
    """The tool's path. Skips the test where it is not installed; CI installs it."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed: apt-get install prometheus")
    return found


class Prometheus:
    """Scrapes one daemon every second.

    Args:
        folder: for its data and configuration.
        target: HOST:PORT of the daemon's HTTP side.
    """

    def __init__(self, folder: Path, target: str) -> None:
        self._folder = folder
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        every = f"{SCRAPE_SECONDS}s"
        config["global"] = {"scrape_interval": every, "evaluation_interval": every}
        config["rule_files"] = [str(DEPLOY / "prometheus" / "rules.yml")]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        folder.mkdir()
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._url = f"http://127.0.0.1:{_free_port()}"

    def __enter__(self) -> Self:
        command = [
            needs("prometheus"),
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self._url.removeprefix('http://')}",
        ]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5):
                    return self
            except (urllib.error.URLError, ConnectionError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self._process.kill()
                    text = (self._folder / "log").read_text()
                    raise AssertionError(f"prometheus did not start:\n{text}") from None
                time.sleep(0.1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(30)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Samples of an instant query."""
        form = urllib.parse.urlencode({"query": expression}).encode()
        with urllib.request.urlopen(f"{self._url}/api/v1/query", form, timeout=30) as answer:
            body: dict[str, Any] = json.load(answer)
        assert body["status"] == "success", body
        result: list[dict[str, Any]] = body["data"]["result"]
        return result

    def settle(self) -> None:
        """Waits until what is true now has been scraped twice and gone through the rules."""
        time.sleep(4 * SCRAPE_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
