"""Empty files with the names of a benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def touch(root: Path, names: Iterable[str]) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root
