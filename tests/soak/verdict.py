"""Does a daemon leak? Judged by what it held during a soak."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MIB = 1 << 20
# Of the run: caches fill, and the allocator finds its size.
_WARM_UP = 0.25


@dataclass(frozen=True)
class Sample:
    """What a daemon held at a moment: seconds since the start, bytes, numbers."""

    seconds: float
    memory: float
    descriptors: float
    tasks: float
    engine_memory: float = 0.0


@dataclass(frozen=True)
class Limits:
    """What a run may cost.

    Attributes:
        memory: bytes that the daemon may have grown by at the end of the run.
        engine_memory: the same of all engines together.
        descriptors, tasks: by how many.
        errors: share of calls that may be refused with UNAVAILABLE or RESOURCE_EXHAUSTED; no
            call may fail otherwise.
    """

    memory: float = 24 * MIB
    engine_memory: float = 64 * MIB
    descriptors: float = 8
    tasks: float = 20
    errors: float = 0.005


@dataclass
class Outcome:
    """What a run did, and what is wrong with it."""

    samples: Sequence[Sample]
    codes: Mapping[str, int]
    done: Counter[str] = field(default_factory=Counter)
    limits: Limits = field(default_factory=Limits)

    def growth(self, name: str) -> float:
        """By how much a quantity grew over the run, after the warm-up, by the robust slope."""
        kept = self.samples[int(len(self.samples) * _WARM_UP) :]
        if len(kept) < 2:
            return 0.0
        seconds = [sample.seconds for sample in kept]
        values = [getattr(sample, name) for sample in kept]
        return slope(seconds, values) * (seconds[-1] - seconds[0])

    def findings(self) -> list[str]:
        """Why it failed; nothing if it did not."""
        found = [
            f"{name} grew by {_shown(name, grown)}, more than {_shown(name, allowed)}"
            for name in ("memory", "engine_memory", "descriptors", "tasks")
            if (grown := self.growth(name)) > (allowed := getattr(self.limits, name))
        ]
        total = sum(self.codes.values())
        if not total:
            return [*found, "no call was made"]
        later = {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
        others = {code: n for code, n in self.codes.items() if code not in {"OK", *later}}
        if others:
            found.append(f"calls failed: {others}")
        share = sum(self.codes.get(code, 0) for code in later) / total
        if share > self.limits.errors:
            found.append(f"{share:.2%} of calls were refused")
        return found

    def report(self) -> str:
        """A table for people."""
        minutes = self.samples[-1].seconds / 60 if self.samples else 0.0
        lines = [
            f"{minutes:.1f} minutes, {sum(self.codes.values())} calls: {dict(self.codes)}",
            "besides: " + ", ".join(f"{n} {what}" for what, n in sorted(self.done.items())),
        ]
        for name in ("memory", "engine_memory", "descriptors", "tasks"):
            values = [getattr(sample, name) for sample in self.samples] or [0.0]
            lines.append(
                f"{name}: {_shown(name, values[0])} at first, {_shown(name, values[-1])} at last, "
                f"{_shown(name, max(values))} at most, grew by {_shown(name, self.growth(name))}"
            )
        return "\n".join(lines)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The median of the slopes between all pairs (Theil and Sen): outliers do not move it."""
    pairs = itertools.combinations(zip(xs, ys, strict=True), 2)
    return statistics.median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairs if x2 > x1)


def _shown(name: str, value: float) -> str:
    return f"{value / MIB:.1f} MiB" if name.endswith("memory") else f"{value:.1f}"
