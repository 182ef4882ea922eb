"""The presets of training specifications."""

from __future__ import annotations

from pathlib import Path

import yaml

from tools.docs.markdown import ROOT, code, fence, table
from tools.docs.product import PRESETS


def preset_files() -> list[Path]:
    """The file of each preset, by name."""
    return sorted((ROOT / PRESETS).glob("*.yaml"))


def render_table() -> str:
    """Name and description of each preset."""
    rows = []
    for path in preset_files():
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows.append([f"[{code(path.stem)}](#{path.stem})", document["description"]])
    return table(["preset", "what it is"], rows)


def render_files() -> str:
    """The file of each preset, which explains each value in comments."""
    parts = []
    for path in preset_files():
        parts += [f"## {path.stem}", fence(path.read_text(encoding="utf-8"), "yaml")]
    return "\n\n".join(parts)
