"""Results of finished runs in a file, one JSON object a line, so that a series can go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Journal:
    """Records by their names. Several processes may add to one file: a line is one write."""

    path: Path

    def records(self) -> dict[str, Record]:
        """Every record so far."""
        if not self.path.exists():
            return {}
        lines = self.path.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
        return {record["name"]: record for record in found}

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Appends one."""
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
        """Does the runs that are not recorded yet.

        Args:
            runs: their names, and what does them.
            part: (k, n): of every n runs only the k-th, for n processes side by side.
            minutes: no run is begun later than this after the call.

        Returns:
            Whether all runs, of every part, are recorded now.
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
