"""Finds the generated blocks of pages and fills them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

_BLOCK = re.compile(
    r"(?P<start>^<!-- generated: (?P<name>[\w.-]+) -->\n)(?P<body>.*?)"
    r"(?P<end>^<!-- end generated -->$)",
    re.MULTILINE | re.DOTALL,
)
_MARKER = re.compile(r"^<!-- (?:generated:|end generated)", re.MULTILINE)


def rendered_pages(folder: Path, subjects: Mapping[str, Callable[[], str]]) -> dict[Path, str]:
    """Every page that has blocks, with its blocks filled.

    Args:
        folder: searched for Markdown files.
        subjects: renders the block of each name.

    Raises:
        ValueError: for a block without an end, an unknown name, or a subject on no page.
    """
    pages: dict[Path, str] = {}
    used: set[str] = set()
    for page in sorted(folder.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        blocks = list(_BLOCK.finditer(text))
        if len(_MARKER.findall(text)) != 2 * len(blocks):
            raise ValueError(f"{page}: a generated block has no start or no end")
        names = [block["name"] for block in blocks]
        if unknown := set(names) - set(subjects):
            raise ValueError(f"{page}: unknown generated block {', '.join(sorted(unknown))}")
        used.update(names)
        if blocks:
            pages[page] = _BLOCK.sub(lambda block: _fill(block, subjects), text)
    if missing := set(subjects) - used:
        raise ValueError(f"no page has the generated block {', '.join(sorted(missing))}")
    return pages


def _fill(block: re.Match[str], subjects: Mapping[str, Callable[[], str]]) -> str:
    body = subjects[block["name"]]().strip("\n")
    return f"{block['start']}\n{body}\n\n{block['end']}"
