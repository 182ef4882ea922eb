"""The README names everything that can be called, set and measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from multigrain_client.cli.main import COMMANDS
from multigrain_server.settings_sources import options
from tests.contract import calls

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

RPCS = [rpc.name for rpc in (*calls().values(), *calls("v1/inference").values())]


@pytest.mark.parametrize("rpc", RPCS)
def test_every_call_is_in_the_readme(rpc):
    assert f"`{rpc}`" in README


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_is_in_the_readme(command):
    section = README.split("## The command line")[1].split("\n## ")[0]
    assert re.search(rf"`{command}[ `]", section)


@pytest.mark.parametrize("option", list(options()), ids=lambda option: option.key)
def test_every_key_of_the_configuration_is_in_the_readme_with_its_default(option):
    (row,) = re.findall(rf"^\| `{re.escape(option.key)}` \| (.*?) \|", README, re.MULTILINE)
    default = option.info.get_default(call_default_factory=True)
    if isinstance(default, Path):
        default = default.name
    shown = row.strip("`")
    if isinstance(default, bool):
        assert shown == str(default).lower()
    elif isinstance(default, (int, float)):
        assert float(shown) == default
    else:
        assert shown == (str(default) if default else "none")


def test_every_preset_is_in_the_readme():
    for preset in (ROOT / "multigrain" / "spec" / "presets").glob("*.yaml"):
        assert f"`{preset.stem}`" in README


def test_links_point_at_files_of_the_repository():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
