"""Links of the README lead somewhere, and paths that the documentation names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import multigrain_client
from tests.contract import calls
from tools.docs.markdown import ROOT
from tools.docs.presets import preset_files

PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Paths of the repository that pages name as code: `tests/faults/test_clock.py`.
NAMED = re.compile(
    r"`((?:benchmarks|deploy|docs|examples|multigrain|protos|server|tests)/[\w./-]*)`"
)
ANCHOR = re.compile(r"[^\w\- ]")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {ANCHOR.sub("", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_files_and_headings(page: Path) -> None:
    """Also what `mkdocs build` does not see: the README, and links out of docs/."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_of_the_repository_exist(page: Path) -> None:
    missing = [path for path in NAMED.findall(page.read_text()) if not (ROOT / path).exists()]
    assert missing == []


def test_every_call_is_documented() -> None:
    roles = (ROOT / "docs" / "reference" / "access.md").read_text()
    triton = (ROOT / "docs" / "how-to" / "triton-clients.md").read_text()
    ours = {rpc.name for rpc in calls().values()}
    theirs = {rpc.name for rpc in calls("v1/inference").values()}
    unsupported = {
        name for name in theirs if re.search("SharedMemory|TraceSetting|LogSetting", name)
    }
    assert {rpc for rpc in ours | theirs if f"`{rpc}`" not in roles} == set()
    assert {rpc for rpc in theirs - unsupported if f"`{rpc}`" not in triton} == set()


def test_every_preset_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "presets.md").read_text()
    assert [path.stem for path in preset_files() if f"`{path.stem}`" not in page] == []


def test_every_name_of_the_client_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "python-api.md").read_text()
    names = {name for name in multigrain_client.__all__ if not name.startswith("_")}
    assert {name for name in names if f"::: multigrain_client.{name}\n" not in page} == set()


def test_every_alert_is_documented() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()
    page = (ROOT / "docs" / "how-to" / "monitor-and-alert.md").read_text()
    alerts = re.findall(r"^ +- alert: (\w+)$", rules, re.MULTILINE)
    assert re.findall(r"^\| `(Multigrain\w+)` \|", page, re.MULTILINE) == alerts


def test_nothing_is_fetched_from_elsewhere() -> None:
    """The site works without internet: no fonts, scripts or pictures of other hosts."""
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings
    assert re.findall(r"https?://", settings) == []
    for page in PAGES:
        assert re.findall(r"!\[[^]]*\]\(https?:|<(?:img|script|link)\b", page.read_text()) == []
