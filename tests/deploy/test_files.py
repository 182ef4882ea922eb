"""The files of deploy/, without running what they are for."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import yaml

from multigrain_server.settings_sources import options
from tests.deploy.named import DEPLOY, container_command, expressions, recorded, series
from tools.docs.metrics import all_series

DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_panels_have_unique_ids_and_do_not_overlap(path) -> None:  # type: ignore[no-untyped-def]
    panels = json.loads(path.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_every_expression_uses_a_metric_of_the_daemon() -> None:
    found = expressions()
    assert set(found) == {"training.json", "serving.json", "rules.yml"}
    for texts in found.values():
        assert texts
        assert all(series(text) for text in texts)
        made = {name for text in texts for name in series(text) if ":" in name}
        assert made <= recorded()


def test_every_metric_in_use_exists() -> None:
    parts = {
        f"{one.name}{part}"
        for one in all_series()
        for part in (("_bucket", "_sum", "_count") if one.type == "histogram" else ("",))
    }
    for file, texts in expressions().items():
        unknown = {name for text in texts for name in series(text) if ":" not in name} - parts
        assert not unknown, file


def test_flags_of_service_and_container_exist() -> None:
    flags_of_daemon = {option.flag for option in options()} | {"--config"}
    service = (DEPLOY / "systemd" / "multigrain.service").read_text()
    command = re.search(r"^ExecStart=(.*)$", service, re.M)
    assert command
    compose = yaml.safe_load((DEPLOY / "container" / "compose.yml").read_text())
    image = container_command()
    commands = [
        shlex.split(command[1]),
        image,
        [image[0], *compose["services"]["multigrain"]["command"]],
    ]
    for words in commands:
        assert words[0].endswith("multigrain-server")
        flags = [word for word in words if word.startswith("--")]
        assert flags
        for flag in flags:
            assert flag.split("=")[0] in flags_of_daemon


def test_service_restart_keeps_jobs_running() -> None:
    service = (DEPLOY / "systemd" / "multigrain.service").read_text()
    assert "\nKillMode=process\n" in service


def test_actions_of_workflows_are_pinned_by_commit() -> None:
    workflows = list((DEPLOY.parent / ".github" / "workflows").glob("*.yml"))
    used = [use for path in workflows for use in re.findall(r"uses: (.*)$", path.read_text(), re.M)]
    assert used
    for use in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", use), use
