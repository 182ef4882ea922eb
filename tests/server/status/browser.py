"""A headless Chromium, spoken to by its driver's own protocol (W3C WebDriver)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

_SECONDS = 120
_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--window-size=1200,900"),
)


class Browser:
    """One window. Skips the test where there is no Chromium.

    Args:
        folder: for its profile, which must not be there yet, and its log.
    """

    def __init__(self, folder: Path) -> None:
        self._driver, self._chromium = shutil.which("chromedriver"), shutil.which("chromium")
        if self._driver is None or self._chromium is None:
            pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
        self._folder = folder
        self._session = ""

    def __enter__(self) -> Self:
        self._log = self._folder / "chromedriver.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._driver), "--port=0"], stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._url = f"http://127.0.0.1:{self._port()}"
            options = {
                "binary": self._chromium,
                "args": [*_ARGUMENTS, f"--user-data-dir={self._folder / 'profile'}"],
            }
            capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            made = self._call("/session", {"capabilities": {"alwaysMatch": capabilities}})
            self._session = f"/session/{made['sessionId']}"
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def open(self, url: str) -> None:
        """Returns when the page has been loaded."""
        self._call(f"{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        """What the body of a JavaScript function returns in the page."""
        return self._call(f"{self._session}/execute/sync", {"script": script, "args": []})

    def until(self, script: str) -> Any:
        """Waits until the function returns something true, through reloads of the page."""
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                value = self.run(script)
            except urllib.error.HTTPError:  # the page went away meanwhile
                value = None
            if value:
                return value
            assert time.monotonic() < deadline, self.run("return document.body.innerText")
            time.sleep(0.1)

    def emulate(self, command: str, **parameters: Any) -> None:
        """A command of Chrome's own protocol."""
        body = {"cmd": command, "params": parameters}
        self._call(f"{self._session}/goog/cdp/execute", body)

    def complaints(self) -> list[str]:
        """What the browser wrote to its console since the last call: what a policy forbids, say."""
        entries = self._call(f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]

    def _call(self, path: str, body: dict[str, Any] | None, method: str = "POST") -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return json.load(answer)["value"]

    def _port(self) -> int:
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            found = re.search(r"started successfully on port (\d+)", self._log.read_text())
            if found:
                return int(found[1])
            time.sleep(0.05)
        raise AssertionError(f"chromedriver did not start:\n{self._log.read_text()}")

    def _end(self) -> None:
        try:
            if self._session:
                self._call(self._session, None, "DELETE")
        finally:
            self._process.terminate()
            self._process.wait(60)
