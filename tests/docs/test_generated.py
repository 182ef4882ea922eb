"""Generated parts of the documentation equal what the code says today."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.docs.blocks import rendered_pages
from tools.docs.markdown import ROOT
from tools.docs.subjects import SUBJECTS


def test_generated_blocks_are_up_to_date() -> None:
    stale = [
        str(page.relative_to(ROOT))
        for page, text in rendered_pages(ROOT / "docs", SUBJECTS).items()
        if page.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run `make docs`"


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_block_is_filled_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = page(tmp_path, "# Title\n\n<!-- generated: a -->\nold\n<!-- end generated -->\n\nend\n")
    assert rendered_pages(tmp_path, {"a": lambda: "new\n"}) == {
        path: "# Title\n\n<!-- generated: a -->\n\nnew\n\n<!-- end generated -->\n\nend\n"
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- generated: a -->\nold\n", "no start or no end"),
        ("old\n<!-- end generated -->\n", "no start or no end"),
        ("<!-- generated: b -->\n<!-- end generated -->\n", "unknown generated block b"),
        ("nothing\n", "no page has the generated block a"),
    ],
)
def test_wrong_block_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    page(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        rendered_pages(tmp_path, {"a": lambda: "new"})
