"""Engines of a ResNet-50: time to replace a killed engine, and the effect of a load on latency.

One model manager with its engines, without gRPC:

* an engine is killed while idle and while busy: time until health is SERVING again;
* one caller of one model, alone and while another model is loaded and unloaded repeatedly.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import results
from benchmarks.resnet50 import write_bundle
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server import service_names
from tests.engine.pictures import picture
from tests.server.serving.harness import Harness, harness, small_config, until

KILLS, LOADS = 5, 4


async def seconds_to_replace(h: Harness, *, busy: bool) -> float:
    """Seconds from the signal until health is SERVING again."""
    photograph = picture(1, size=(500, 375), kind="JPEG")
    count = h.health_log.count((service_names.EMBEDDING, True))
    engine = h.manager.catalog.route("").engine
    work = [asyncio.create_task(h.embed(photograph)) for _ in range(16 if busy else 0)]
    if busy:
        await until(lambda: engine.in_flight > 0)
    os.kill(engine.pid, signal.SIGKILL)
    killed = time.perf_counter()
    await until(lambda: h.health_log.count((service_names.EMBEDDING, True)) > count, seconds=60)
    seconds = time.perf_counter() - killed
    answers = await asyncio.gather(*work)
    if any(item.error for answer in answers for item in answer.results):
        raise RuntimeError("an image was not answered")
    return seconds


async def latencies(h: Harness, end: asyncio.Event) -> list[float]:
    """Milliseconds of each call of one caller of the first model."""
    photograph = picture(1, size=(500, 375), kind="JPEG")
    found: list[float] = []
    while not end.is_set():
        start = time.perf_counter()
        await h.embed(photograph, model="one")
        found.append(1e3 * (time.perf_counter() - start))
    return found


async def measure(report: results.Report, root: Path, runtime: str) -> None:
    config = small_config(
        max_batch=32, decode_threads=0, engine_threads=0, runtime=runtime,
        # Restart without a back-off: each kill is meant to be a first failure.
        restart_backoff_seconds=1e-3, restart_backoff_max_seconds=1e-3,
    )  # fmt: skip
    async with harness(root, config) as h:
        view = await h.manager.load("one", make_default=True)
        name = view.runtime
        report.compare(f"{name}: load", view.load_seconds, unit="s")
        for busy in (False, True):
            times = [await seconds_to_replace(h, busy=busy) for _ in range(KILLS)]
            how = "with 16 images in flight" if busy else "when idle"
            report.compare(f"{name}: replaced {how}", times, unit="s", at_most=2.0)
        await asyncio.sleep(1)
        p99 = {}
        for what in ("alone", "loading"):
            end = asyncio.Event()
            caller = asyncio.create_task(latencies(h, end))
            if what == "alone":
                await asyncio.sleep(8)
            else:
                for _ in range(LOADS):
                    await h.manager.load("two")
                    await h.manager.unload("two")
            end.set()
            p99[what] = float(np.percentile(await caller, 99))
        report.compare(
            f"{name}: p99 of one caller while another model is loaded", p99["loading"], unit="ms",
            over=p99["alone"], reference="alone", at_most=2.0,
        )  # fmt: skip


def main() -> int:
    parser = results.parser("engines")
    parser.add_argument("--runtimes", nargs="+", default=["auto", "onnxruntime"])
    options = parser.parse_args()
    with results.data_folder(options) as data:
        models = data / "models"
        for name in ("one", "two"):
            write_bundle(models, name)
        report = results.Report("engines", options)
        for runtime in options.runtimes:
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                (root / "models").symlink_to(models.resolve())
                try:
                    asyncio.run(measure(report, root, runtime))
                except MultigrainError as error:
                    if error.kind is not ErrorKind.UNSUPPORTED:
                        raise
                    report.missing(runtime, error.message)
        return report.finish()


if __name__ == "__main__":
    sys.exit(main())
