"""Writes the generated part of the client (``make sync-client``), or checks that it is current."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools import loss_point, unasync


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true")
    mode.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    outdated = []
    # One after the other: sorting the imports of the second needs the files of the first.
    for generate in (loss_point.generate, unasync.generate):
        for path, text in generate().items():
            if _read(path) == text:
                continue
            outdated.append(path)
            if arguments.write:
                path.write_text(text, encoding="utf-8")
    if outdated and arguments.check:
        names = ", ".join(str(path.relative_to(unasync.CLIENT)) for path in outdated)
        sys.exit(f"generated files are out of date: {names}; run `make sync-client`")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    main()
