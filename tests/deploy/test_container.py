"""The image's recipe and the composition, without an engine to run them."""

from __future__ import annotations

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
