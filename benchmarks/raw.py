"""What the machine can do without a server: preprocessing and the network, in one process.

``python -m benchmarks.raw BUNDLE [RUNTIME]`` is a contestant (``benchmarks.contestant``) whose
steps are measurements; :class:`Machine` is the side that asks it. It allocates as our engines do,
stays for as long as the servers are measured, and takes turns with them: one moment of a shared
machine differs from the next by a tenth, which hits a server and the limit beside it alike.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from benchmarks.contestant import Contestant, Turn, serve
from benchmarks.photographs import photographs
from multigrain.bundle.manifest import BundleManifest
from multigrain.engine.runtimes.base import Bundle, Compute
from multigrain.engine.runtimes.choice import load
from multigrain.images.preprocess import crop
from multigrain_server.engines.launch import HUGE_PAGES

_STEPS = 2
_BATCHES = 24


@dataclass(frozen=True)
class Raw:
    """Milliseconds of preparing one photograph on one core, images a second of the engine on all
    cores in batches of its best size, and milliseconds of one photograph that is prepared and
    computed alone."""

    prepare_ms: float
    engine: float
    alone_ms: float

    @property
    def limit(self) -> float:
        """Images a second if every core did nothing but prepare and compute."""
        cores = os.cpu_count() or 1
        return 1 / (self.prepare_ms / 1000 / cores + 1 / self.engine)

    def between(self, other: Raw) -> Raw:
        """What held between this moment and another."""
        return Raw(
            (self.prepare_ms + other.prepare_ms) / 2,
            2 / (1 / self.engine + 1 / other.engine),
            (self.alone_ms + other.alone_ms) / 2,
        )


class Machine:
    """Measures itself when asked. A context manager: its process ends with it.

    Args:
        bundle: folder of the model.
        runtime: as for LoadModel.
    """

    def __init__(self, bundle: Path, runtime: str) -> None:
        self._contestant = Contestant(
            "benchmarks.raw", [str(bundle), runtime or "auto"], environment=HUGE_PAGES
        )

    def measure(self) -> Raw:
        """Two seconds on all cores."""
        parts = self._contestant.turn(_STEPS, parts=True).parts
        return Raw(1000 * parts["prepare"], 1 / parts["image"], 1000 * parts["alone"])

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._contestant.__exit__(kind, error, trace)


def main() -> None:
    path = Path(sys.argv[1])
    bundle = Bundle(path, BundleManifest.model_validate_json((path / "model.json").read_text()))
    head = bundle.manifest.heads[0]
    runtime = load(sys.argv[2], bundle, Compute()).runtimes[head.resolution]
    pictures = photographs()
    prepared = [crop(data, head.preprocessing) for data in pictures]
    best = runtime.best_batch

    def prepare() -> float:
        start = time.perf_counter()
        for data in pictures:
            crop(data, head.preprocessing)
        return (time.perf_counter() - start) / len(pictures)

    def image() -> float:
        start = time.perf_counter()
        for number in range(_BATCHES):
            first = number * best % (len(prepared) - best + 1)
            runtime.run_pixels(prepared[first : first + best], scores=False)
        return (time.perf_counter() - start) / (_BATCHES * best)

    def alone() -> list[float]:
        seconds = []
        for data in pictures:
            start = time.perf_counter()
            runtime.run_pixels([crop(data, head.preprocessing)], scores=False)
            seconds.append(time.perf_counter() - start)
        return seconds

    def take(steps: int, _parts: bool) -> Turn:
        found = [(prepare(), image(), alone()) for _ in range(steps)]
        parts = {
            "prepare": float(np.mean([one for one, _, _ in found])),
            "image": float(np.mean([one for _, one, _ in found])),
            "alone": float(np.median([one for _, _, many in found for one in many])),
        }
        return Turn([], parts=parts)

    serve(take)


if __name__ == "__main__":
    main()
