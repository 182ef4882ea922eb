"""Every promise of the security model names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "security-model.md"
SECTION = "## Promises and their tests"
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def promise_rows(page: str) -> list[list[str]]:
    """The rows of all promise tables: promise, limits and test."""
    _, _, section = page.partition(SECTION)
    rows = []
    for line in section.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip()[1:-1].split("|")]
            if cells[0] != "promise" and not set(line) <= set("|- "):
                rows.append(cells)
    return rows


def function_names(path: Path) -> set[str]:
    """The names of all test functions in a file."""
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_each_promise_names_an_existing_test() -> None:
    page = PAGE.read_text()
    assert SECTION in page
    for row in promise_rows(page):
        assert len(row) == 3, f"three columns: {row}"
        named = NAMED_TEST.findall(row[2])
        assert named, f"write `tests/FILE.py::NAME` in the last column of: {row[0]}"
        for file, name in named:
            assert (ROOT / file).is_file(), f"{file} does not exist: {row[0]}"
            if name:
                assert name in function_names(ROOT / file), f"{file} has no {name}: {row[0]}"
