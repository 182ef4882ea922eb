"""What the machine can do without a server: preprocessing and the network, in one process.

``python -m tests.bench.raw BUNDLE [RUNTIME]`` writes a :class:`Raw` as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from multigrain.bundle.manifest import BundleManifest
from multigrain.engine.runtime.base import Bundle, Compute, Pixels, Runtime
from multigrain.engine.runtime.choice import load
from multigrain.images.preprocess import crop
from tests.bench.photographs import photographs

_SECONDS = 4.0


@dataclass(frozen=True)
class Raw:
    """Images a second of the engine on all cores, one full batch after the other; milliseconds of
    preparing one photograph, and of one that is prepared and computed alone."""

    runtime: str
    prepare_ms: float
    engine: float
    alone_ms: float

    @property
    def limit(self) -> float:
        """Images a second if every core did nothing but prepare and compute."""
        cores = os.cpu_count() or 1
        return 1 / (self.prepare_ms / 1000 / cores + 1 / self.engine)


def measure(bundle: Bundle, runtime_name: str) -> Raw:
    head = bundle.manifest.heads[0]
    pictures = photographs()
    runtime = load(runtime_name, bundle, Compute()).runtimes[head.resolution]
    prepared = [crop(data, head.preprocessing) for data in pictures]
    best = runtime.best_batch
    start = time.perf_counter()
    for _ in range(3):
        for data in pictures:
            crop(data, head.preprocessing)
    prepare = (time.perf_counter() - start) / 3 / len(pictures)
    engine = _rate(runtime, prepared, best)
    alone = []
    for data in pictures * 3:
        start = time.perf_counter()
        runtime.run_pixels([crop(data, head.preprocessing)])
        alone.append(time.perf_counter() - start)
    return Raw(runtime.name, 1000 * prepare, engine, 1000 * float(np.median(alone)))


def _rate(runtime: Runtime, images: list[Pixels], best: int) -> float:
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _SECONDS:
        first = count % (len(images) - best + 1)
        runtime.run_pixels(images[first : first + best])
        count += best
    return count / elapsed


if __name__ == "__main__":
    path = Path(sys.argv[1])
    manifest = BundleManifest.model_validate_json((path / "model.json").read_text())
    name = sys.argv[2] if len(sys.argv) > 2 else "auto"
    print(json.dumps(asdict(measure(Bundle(path, manifest), name))))
