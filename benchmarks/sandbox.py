"""Latency of an engine with and without its sandbox.

Both engines run at the same time and get one image at a time, alternately, so that whatever else
the machine does slows both down alike.
"""

from __future__ import annotations

import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks import results
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


def main() -> int:
    parser = results.parser("sandbox")
    parser.add_argument("--images", type=int, default=300)
    options = parser.parse_args()
    report = results.Report("sandbox", options)
    with tempfile.TemporaryDirectory() as folder:
        network = TinyNetwork(1, width=64, repeat=2)
        bundle = write_bundle(Path(folder), network=network, size=64)
        for runtime in ("openvino-f32", "onnxruntime"):
            library = runtime.partition("-")[0]
            if find_spec(library) is None:
                report.missing(runtime, f"{library} is not installed")
                continue
            found = measure(runtime, bundle, options.images)
            without, within = (found[mode][options.images // 10 :] for mode in _MODES)
            for percent in (50, 99):
                report.compare(
                    f"{runtime}: p{percent}", float(np.percentile(within, percent)), unit="ms",
                    over=float(np.percentile(without, percent)), reference="without a sandbox",
                )  # fmt: skip
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
