"""Which series the files of deploy/ name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_SERIES = re.compile(r"\bmultigrain_[a-z_]+\b")


def expressions() -> dict[str, list[str]]:
    """File name -> the PromQL expressions in it."""
    found = {
        path.name: list(_dashboard(json.loads(path.read_text())))
        for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    }
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    found["rules.yml"] = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return found


def _dashboard(board: dict[str, Any]) -> Iterator[str]:
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def series(expression: str) -> set[str]:
    """Names of our series in an expression."""
    return set(_SERIES.findall(expression))


def exported(exposition: str) -> set[str]:
    """Names that a /metrics page can have samples of, from its TYPE lines."""
    names: set[str] = set()
    for line in exposition.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            names |= {name + suffix for suffix in suffixes}
    return names
