"""The machine's limit without a server: preprocessing and inference in one process.

``python -m benchmarks.machine_limit BUNDLE [RUNTIME] [small]`` is a program of
``benchmarks.alternating``; :class:`Machine` requests measurements from it. It allocates memory as
an engine does and alternates with the servers: the speed of a shared machine varies by a tenth,
which then affects a server and its limit alike.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from benchmarks.alternating import BenchmarkProcess, Measurement, serve
from benchmarks.photographs import photographs, thumbnails
from multigrain.bundle.manifest import BundleManifest
from multigrain.engine.runtimes.base import Bundle, Compute
from multigrain.engine.runtimes.choice import load
from multigrain.images.preprocess import crop
from multigrain.machine import available_cpus
from multigrain_server.engines.launch import HUGE_PAGES

_STEPS = 2
# Of each part of a step: long enough for a slow processor, where a batch takes most of a second.
_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """Limits of the machine at one moment.

    Attributes:
        prepare_ms: milliseconds to preprocess one photograph on one core.
        engine: images per second of inference on all cores, in batches of the best size.
        alone_ms: milliseconds to preprocess and compute a single photograph.
    """

    prepare_ms: float
    engine: float
    alone_ms: float

    @property
    def limit(self) -> float:
        """Images per second if all cores only preprocess and compute."""
        cores = available_cpus()
        return 1 / (self.prepare_ms / 1000 / cores + 1 / self.engine)

    def between(self, other: Limits) -> Limits:
        """The mean of two measurements."""
        return Limits(
            (self.prepare_ms + other.prepare_ms) / 2,
            2 / (1 / self.engine + 1 / other.engine),
            (self.alone_ms + other.alone_ms) / 2,
        )


class Machine:
    """Measures the machine in a child process; a context manager that ends it.

    Args:
        bundle: folder of the model.
        runtime: as for LoadModel.
        small: whether the images are thumbnails.
    """

    def __init__(self, bundle: Path, runtime: str, *, small: bool = False) -> None:
        arguments = [str(bundle), runtime or "auto", *(["small"] if small else [])]
        self._program = BenchmarkProcess(
            "benchmarks.machine_limit", arguments, environment=HUGE_PAGES
        )

    def measure(self) -> Limits:
        """Measures for about six seconds on all cores."""
        parts = self._program.measure(_STEPS, parts=True).parts
        return Limits(1000 * parts["prepare"], 1 / parts["image"], 1000 * parts["alone"])

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._program.__exit__(kind, error, trace)


def main() -> None:
    path = Path(sys.argv[1])
    bundle = Bundle(path, BundleManifest.model_validate_json((path / "model.json").read_text()))
    head = bundle.manifest.heads[0]
    runtime = load(sys.argv[2], bundle, Compute()).runtimes[head.resolution]
    images = thumbnails() if sys.argv[3:] == ["small"] else photographs()
    best = runtime.best_batch
    decoded = [crop(data, head.preprocessing) for data in images]
    # There may be fewer photographs than a batch has images.
    prepared = list(itertools.islice(itertools.cycle(decoded), len(decoded) + best - 1))

    def seconds_each(work: Callable[[int], object], each: int = 1) -> list[float]:
        """Seconds for one image, of each call of ``work``, which does ``each`` images."""
        found: list[float] = []
        end = time.perf_counter() + _SECONDS
        while (start := time.perf_counter()) < end or len(found) < 2:
            work(len(found) * each)
            found.append((time.perf_counter() - start) / each)
        return found

    def prepare(number: int) -> object:
        return crop(images[number % len(images)], head.preprocessing)

    def image(number: int) -> object:
        first = number % len(decoded)
        return runtime.run_pixels(prepared[first : first + best], scores=False)

    def alone(number: int) -> object:
        pixels = crop(images[number % len(images)], head.preprocessing)
        return runtime.run_pixels([pixels], scores=False)

    def take(steps: int, _parts: bool) -> Measurement:
        rounds = [
            (seconds_each(prepare), seconds_each(image, best), seconds_each(alone))
            for _ in range(steps)
        ]
        parts = {
            "prepare": float(np.mean([one for many, _, _ in rounds for one in many])),
            "image": float(np.mean([one for _, many, _ in rounds for one in many])),
            "alone": float(np.median([one for _, _, many in rounds for one in many])),
        }
        return Measurement([], parts=parts)

    serve(take)


if __name__ == "__main__":
    main()
