"""Lists the benchmarks, or runs some of them one after the other: ``python -m benchmarks --help``.

A benchmark that misses a goal or fails does not keep the others from running.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.index import AREAS, BENCHMARKS, Benchmark
from benchmarks.results import FOLDER, MISSED


def show() -> None:
    """Prints the question that each benchmark answers."""
    for area in AREAS:
        print(f"\n{area}")
        for one in BENCHMARKS.values():
            if one.area == area:
                marked = "*" if one.main else " "
                print(f" {marked} {one.name:24} {one.question} ({one.duration})")
    print("\n* main benchmarks: python -m benchmarks main, or make bench")


def run(one: Benchmark, options: argparse.Namespace, data: Path) -> str:
    """Runs a benchmark; returns how it ended. ``data`` keeps the models for the next ones."""
    command = [sys.executable, "-m", one.module, *one.arguments]
    command += ["--results", str(options.results), *(["--replace"] if options.replace else [])]
    command += ["--data", str(data)] if one.data else []
    print(f"\n== {one.name}: {one.question}", flush=True)
    start = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    ended = {0: "done", MISSED: "done, a goal was missed"}.get(code, f"failed, exit code {code}")
    return f"{one.name}: {ended}, {(time.monotonic() - start) / 60:.1f} minutes"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME",
        help="of benchmarks; 'main' = the main ones; none = list them",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the JSON files")
    parser.add_argument("--replace", action="store_true", help="replace better stored results")
    options = parser.parse_args()
    if not options.names:
        show()
        return 0
    names = [one.name for one in BENCHMARKS.values() if one.main or one.name in options.names]
    if "main" not in options.names:
        names = options.names
    if unknown := set(names) - BENCHMARKS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as data:
        ended = [run(BENCHMARKS[name], options, Path(data)) for name in names]
    print("\n" + "\n".join(ended))
    return 1 if any(": failed" in text for text in ended) else 0


if __name__ == "__main__":
    sys.exit(main())
