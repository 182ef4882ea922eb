"""What the files of deploy/ name: series, and the command of the image."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_SERIES = re.compile(r"\bmultigrain[_:][a-z0-9_:]+")


def container_command() -> list[str]:
    """What the image runs."""
    recipe = (DEPLOY / "container" / "Dockerfile").read_text().splitlines()
    words: list[str] = []
    for name in ("ENTRYPOINT ", "CMD "):
        (line,) = (line for line in recipe if line.startswith(name))
        words += json.loads(line.removeprefix(name))
    return words


def expressions() -> dict[str, list[str]]:
    """File name -> the PromQL expressions in it."""
    found = {
        path.name: list(_dashboard(json.loads(path.read_text())))
        for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    }
    found["rules.yml"] = [rule["expr"] for rule in rules()]
    return found


def rules() -> list[dict[str, Any]]:
    """Every rule, recording ones first."""
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def recorded() -> set[str]:
    """Names of the series that recording rules make."""
    return {rule["record"] for rule in rules() if "record" in rule}


def _dashboard(board: dict[str, Any]) -> Iterator[str]:
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for annotation in board["annotations"]["list"]:
        yield annotation["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def series(expression: str) -> set[str]:
    """Names of our series in an expression."""
    return set(_SERIES.findall(expression))


def ever(expression: str) -> str:
    """The PromQL that has data if the expression had any within the last half hour, conditions
    left aside: what an alert waits for need not have come true."""
    text = re.sub(r"\$\w+", ".*", expression)
    labels = re.fullmatch(r"label_values\((\w+(?:\{.*\})?), \w+\)", text)
    if labels:
        text = labels[1]
    text = re.sub(r"(==|[<>]=?) (?=[0-9])", r"\1 bool ", text)
    # A job has one state at a time.
    text = text.replace('state="FAILED"', 'state=~".+"')
    return f"count_over_time(({text})[30m:1s])"
