"""The image's recipe and the composition, without an engine to run them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from multigrain_server.access.tokens import TokenFileError, read_tokens
from multigrain_server.settings_sources import parse
from tests.deploy.named import DEPLOY, container_command
from tests.deploy.tools import output, packaged

FOLDER = DEPLOY / "container"


def test_dockerfile_passes_hadolint() -> None:
    output(packaged("hadolint"), "--failure-threshold=info", str(FOLDER / "Dockerfile"))


def test_image_runs_unprivileged_with_a_health_check() -> None:
    last = (FOLDER / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert "\nUSER 10001:10001\n" in last
    assert "\nHEALTHCHECK " in last
    assert last.index("\nUSER ") < last.index("\nENTRYPOINT ")


def test_base_image_and_packages_are_named_by_hash() -> None:
    recipe = (FOLDER / "Dockerfile").read_text()
    base = re.search(r"^ARG BASE=(\S+)$", recipe, re.MULTILINE)
    assert base is not None
    assert re.fullmatch(r"python:3\.11\.\d+-[\w-]+@sha256:[0-9a-f]{64}", base[1])
    assert "# syntax=" not in recipe  # names another image, by tag
    installs = re.findall(r"pip install ((?:[^&;\\\n]|\\\n)*)", recipe)
    assert installs
    for options in installs:
        assert "--no-deps" in options
        assert (
            "--require-hashes" in options or "--no-build-isolation" in options or "EXTRA" in options
        )


@pytest.mark.parametrize("extra", ["serve", "server"])
def test_image_lock_satisfies_pyproject(extra: str) -> None:
    recipe = (FOLDER / "Dockerfile").read_text()
    assert "ARG PACKAGES=server" in recipe
    assert '"requirements/${PACKAGES}.txt"' in recipe
    locked = locked_versions(f"{extra}.txt")
    wanted = requirements_of(*{extra, "serve"}, "tracing")
    assert wanted
    for requirement in wanted:
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), (
            requirement
        )
    # The image has what is tested.
    tested = locked_versions("ci.txt")
    if extra == "serve":
        # MindSpore needs numpy 1; without it the daemon has numpy 2, which newer Pythons need.
        assert Version(locked.pop("numpy")) >= Version("2")
        assert not locked.keys() & {"mindspore", "scipy", "matplotlib", "onnx", "nncf", "rich"}
    assert locked.items() <= tested.items()
    text = (DEPLOY.parent / "requirements" / f"{extra}.txt").read_text()
    for block in re.split(r"\n(?=\S)", text):
        assert block.lstrip().startswith("#") or "--hash=sha256:" in block, block


def test_requirements_have_upper_bounds() -> None:
    for requirement in requirements_of(*project()["optional-dependencies"]):
        operators = {one.operator for one in requirement.specifier}
        assert operators & {"<", "==", "~="}, requirement


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    return table


def requirements_of(*extras: str) -> list[Requirement]:
    """What the project and some extras require of other projects."""
    texts = list(project()["dependencies"])
    for extra in extras:
        texts += project()["optional-dependencies"][extra]
    return [one for one in map(Requirement, texts) if one.name != "multigrain"]


def locked_versions(name: str) -> dict[str, str]:
    """Project -> version of a lock file."""
    text = (DEPLOY.parent / "requirements" / name).read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def test_container_command_needs_tokens() -> None:
    config = parse(container_command()[1:], {}).config
    assert config.access.tokens == Path("/etc/multigrain/tokens.yaml")
    assert not config.access.allow_anonymous
    with pytest.raises(TokenFileError, match=r"tokens\.yaml: No such file.*--new-token"):
        read_tokens(config.access.tokens)


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
        assert "build" in service or "@sha256:" in service["image"]
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
