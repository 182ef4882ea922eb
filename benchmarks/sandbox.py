"""Latency of an engine with and without its sandbox: ``python -m benchmarks.sandbox``.

Both engines run at the same time and are asked in turns, one image at a time, so that whatever
else the machine does slows both down alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from multigrain.sandbox.apply import SandboxMode
from tests.engine.bundles import TinyNetwork, write_bundle
from tests.engine.client import EngineClient
from tests.engine.pictures import picture

_MODES: tuple[SandboxMode, ...] = ("off", "auto")


def measure(runtime: str, bundle: Path, images: int) -> dict[SandboxMode, list[float]]:
    """Milliseconds of each answer, by the mode of the sandbox."""
    data = picture(1, size=(320, 240), kind="JPEG")
    found: dict[SandboxMode, list[float]] = {mode: [] for mode in _MODES}
    with (
        EngineClient(bundle, runtime=runtime, sandbox="off", max_batch=1) as off,
        EngineClient(bundle, runtime=runtime, sandbox="required", max_batch=1) as restricted,
    ):
        engines = {"off": off, "auto": restricted}
        for number in range(images):
            for mode in _MODES:
                start = time.perf_counter()
                engines[mode].submit(number, data, top_k=1)
                assert engines[mode].result(number).error is None
                found[mode].append(1000 * (time.perf_counter() - start))
    return found


def main() -> None:
    """Prints a line for each runtime and mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        network = TinyNetwork(1, width=64, repeat=2)
        bundle = write_bundle(Path(folder), network=network, size=64)
        for runtime in ("openvino-f32", "onnxruntime"):
            for mode, times in measure(runtime, bundle, images).items():
                ordered = sorted(times[images // 10 :])
                p50, p99 = statistics.median(ordered), ordered[int(0.99 * len(ordered))]
                print(f"{runtime:13} sandbox {mode:5} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms")


if __name__ == "__main__":
    main()
