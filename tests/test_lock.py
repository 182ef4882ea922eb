"""The lock file installs what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "ci.txt"
# The extras that `make lock` resolves.
EXTRAS = ("server", "demo", "dev")


@cache
def _locked() -> dict[str, str]:
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    pins = [re.match(r"([\w.-]+)==(\S+)", line) for line in lines]
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def _required() -> list[Requirement]:
    """Direct requirements, with the extras that name other extras of the project resolved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [Requirement(text) for text in project["dependencies"]]
    waiting = list(EXTRAS)
    while waiting:
        for text in project["optional-dependencies"][waiting.pop()]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                waiting += requirement.extras
            else:
                required.append(requirement)
    return required


def test_every_requirement_is_locked_to_a_version_in_its_range() -> None:
    wrong = []
    for requirement in _required():
        version = _locked().get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement} is locked to {version}")
    assert wrong == [], "run `make lock`"


def test_every_locked_package_has_hashes() -> None:
    packages = re.split(r"\n(?=\w)", LOCK.read_text(encoding="utf-8"))
    assert [package for package in packages if "--hash=sha256:" not in package] == []


def test_the_lock_file_names_no_package_index() -> None:
    assert "://" not in LOCK.read_text(encoding="utf-8")
