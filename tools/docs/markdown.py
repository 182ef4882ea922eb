"""Markdown that is written by programs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells may hold Markdown, but no line breaks or bare bars."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def code(text: str) -> str:
    """Inline code."""
    return f"`{text}`"


def fence(text: str, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def prose(text: str) -> str:
    """Plain text from a comment or a description: no character of it is markup, but backticks."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    escaped = (re.sub(r"([\\*|\[])", r"\\\1", piece) for piece in pieces[::2])
    return "".join(
        text + literal
        for text, literal in itertools.zip_longest(
            (piece.replace("<", "&lt;") for piece in escaped), pieces[1::2], fillvalue=""
        )
    )


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text.replace("\n", "<br>"))
