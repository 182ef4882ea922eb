"""Derives the blocking client from the asyncio client by replacing words of its source.

``transport.py`` and ``bulk.py`` are written by hand on both sides: threads differ from asyncio.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[1] / "client" / "multigrain_client"
GENERATED = ("client.py", "images.py", "indexes.py", "jobs.py", "models.py", "rpcs.py")
_HEADER = "# Generated from aio/{name} by `make sync-client`: edit that file instead.\n"

# In this order; they apply to docstrings as well.
_RULES = (
    # A sentence that is not a matter of words.
    (
        "It can be\n    shared between event loops, each of which gets a connection of its own.",
        "It can be\n    shared between threads.",
    ),
    (r"\bAsyncio client\b", "Blocking client"),
    (r"\basyncio client\b", "blocking client"),
    (r"\bmultigrain_client\.aio\b", "multigrain_client.sync"),
    (r"\bawait asyncio\.to_thread\(([\w.]+)\)", r"\1()"),
    (r"\bawait asyncio\.to_thread\(([\w.]+), ", r"\1("),
    (r"\biterate\((\w+)\)", r"\1"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\bimport asyncio\b", "import time"),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\baclosing\b", "closing"),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"\bAsync(?=[A-Z])", ""),
)


def blocking(source: str) -> str:
    """The blocking version of asyncio source, formatted and without unused imports."""
    for pattern, replacement in _RULES:
        source = re.sub(pattern, replacement, source)
    source = _ruff(source, "check", "--quiet", "--fix", "--exit-zero", "--select", "I,F401")
    return _ruff(source, "format", "--quiet")


def generate() -> dict[Path, str]:
    """The generated files by path."""
    return {
        CLIENT / "sync" / name: _HEADER.format(name=name)
        + blocking((CLIENT / "aio" / name).read_text(encoding="utf-8"))
        for name in GENERATED
    }


def _ruff(source: str, *arguments: str) -> str:
    # The file name decides which imports are first-party.
    command = [
        sys.executable,
        "-m",
        "ruff",
        *arguments,
        "--stdin-filename",
        "client/multigrain_client/sync/x.py",
        "-",
    ]
    return subprocess.run(
        command, input=source, capture_output=True, text=True, check=True, cwd=CLIENT.parents[1]
    ).stdout
