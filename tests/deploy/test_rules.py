"""The rules, with the tool that Prometheus has for it."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from tests.deploy.named import DEPLOY, rules
from tests.deploy.prometheus import needs

FOLDER = DEPLOY / "prometheus"


@pytest.mark.process
def test_rules_pass_their_promtool_tests() -> None:
    promtool = needs("promtool")
    done = subprocess.run(
        [promtool, "test", "rules", "rules_test.yml"], cwd=FOLDER, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_has_an_action() -> None:
    tests = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    fires = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    alerts = [rule for rule in rules() if "alert" in rule]
    assert fires == {rule["alert"] for rule in alerts}
    for rule in alerts:
        assert rule["annotations"].keys() == {"summary", "action"}
        assert rule["labels"]["severity"] in ("warning", "critical")
