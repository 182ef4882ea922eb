"""Results of finished runs in a file, one JSON object per line, so that a series can be resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """Records by name. Several processes may append to one file: each line is one write."""

    path: Path

    def records(self) -> dict[str, Record]:
        """All records so far."""
        if not self.path.exists():
            return {}
        lines = self.path.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        return {record["name"]: record for record in records}

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Appends one record."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, **record}) + "\n")

    def complete(
        self,
        runs: Iterable[tuple[str, Callable[[], Mapping[str, Any]]]],
        *,
        part: tuple[int, int] = (0, 1),
        minutes: float = float("inf"),
    ) -> bool:
        """Executes the runs that have no record yet.

        Args:
            runs: names and functions.
            part: (k, n): only every n-th run from the k-th, for n processes in parallel.
            minutes: no run starts later than this.

        Returns:
            Whether all runs of all parts have a record now.
        """
        end = time.monotonic() + 60 * minutes
        listed = list(runs)
        for name, run in listed[part[0] :: part[1]]:
            if name in self.records():
                continue
            if time.monotonic() > end:
                break
            print(f"-- {name}", flush=True)
            self.add(name, run())
        return {name for name, _ in listed} <= self.records().keys()
