"""Code blocks of Markdown pages, as one script that a reader would type."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>[^>]+) -->\n *$")
RUNNABLE = {"shell", "python"}
# After a daemon was started in the background, as a reader waits for its first line.
WAIT = "until (: < /dev/tcp/${MULTIGRAIN_LISTEN/://}) 2> /dev/null; do sleep 0.1; done"


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: of the fence.
        text: what is inside.
        not_run: why it is not run; empty if it is.
        line: of the fence in its page, from 1.
    """

    language: str
    text: str
    not_run: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        before = _NOT_RUN.search(text[: fence.start()])
        body = re.sub(rf"^{fence['indent']}", "", fence["body"], flags=re.MULTILINE)
        line = text.count("\n", 0, fence.start()) + 1
        found.append(Block(fence["language"], body, before["reason"] if before else "", line))
    return found


def script(pages: list[Path], also: Collection[str] = ()) -> str:
    """The blocks of several pages, one after the other, in one bash.

    Each begins with its place on standard error, so that a failure names it.

    Args:
        pages: with the blocks.
        also: reasons for which blocks are not run otherwise.
    """
    lines = []
    for page in pages:
        for block in blocks(page):
            if block.language not in RUNNABLE or (block.not_run and block.not_run not in also):
                continue
            lines.append(f'echo "--- {page.name}:{block.line} after $SECONDS s" >&2')
            if block.language == "python":
                lines += ["python - <<'END_OF_PYTHON'", block.text.rstrip(), "END_OF_PYTHON"]
            else:
                lines.append(block.text.rstrip())
                if block.text.rstrip().endswith("&"):
                    lines.append(WAIT)
    return "\n".join(lines) + "\n"
