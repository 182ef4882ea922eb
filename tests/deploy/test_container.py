"""The image's recipe and the composition, without an engine to run them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from tests.deploy.named import DEPLOY
from tests.deploy.tools import output, packaged

FOLDER = DEPLOY / "container"


def test_dockerfile_passes_hadolint() -> None:
    output(packaged("hadolint"), "--failure-threshold=info", str(FOLDER / "Dockerfile"))


def test_image_runs_unprivileged_with_a_health_check() -> None:
    last = (FOLDER / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert "\nUSER 10001:10001\n" in last
    assert "\nHEALTHCHECK " in last
    assert last.index("\nUSER ") < last.index("\nENTRYPOINT ")


def test_copied_files_are_in_the_build_context() -> None:
    recipe = (FOLDER / "Dockerfile").read_text()
    through = {
        line[1:]
        for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        word
        for line in recipe.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert copied == through
    assert all((DEPLOY.parent / name).exists() for name in copied)


def test_compose_services_are_confined() -> None:
    services = yaml.safe_load((FOLDER / "compose.yml").read_text())["services"]
    assert services.keys() == {"multigrain", "prometheus", "grafana"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert ":" in service["image"]
        for volume in service["volumes"]:
            source = volume.rpartition(":")[0].partition(":")[0]
            if source.startswith("../"):
                assert volume.endswith(":ro")
                assert (FOLDER / source).is_dir()


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_the_health_check_takes_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = (FOLDER / "Dockerfile").read_text()
    found = re.search(r"^HEALTHCHECK .*?CMD (\[.*?\])$", recipe, re.MULTILINE | re.DOTALL)
    assert found is not None
    _python, *arguments = json.loads(found[1])
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        program = [part.replace(":9464", f":{server.server_port}") for part in arguments]
        run = subprocess.run([sys.executable, *program], capture_output=True, text=True)
        server.shutdown()
    assert run.returncode == 0, run.stderr
