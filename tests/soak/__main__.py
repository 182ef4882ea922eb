"""``python -m tests.soak --minutes 30``: a soak, and a control run that must be caught."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.e2e.daemon import Daemon
from tests.faults.serving import samples, serving_daemon
from tests.soak.load import MODELS, Load, engines, prepare
from tests.soak.verdict import Outcome, Sample

_SAMPLE_SECONDS = 3.0
_DAEMON, _LEAKING = "tests.server.fake_daemon", "tests.soak.leaking_daemon"
# So that the allocator's habits are not taken for a leak.
_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_MMAP_THRESHOLD_": "65536",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--control-minutes", type=float, default=0.0, help="default: a fifth")
    arguments = parser.parse_args()
    os.environ.update(_ALLOCATOR)
    outcome = asyncio.run(soak(arguments.minutes, _DAEMON))
    print(f"soak\n{outcome.report()}", flush=True)
    for finding in outcome.findings():
        print(f"FAILED: {finding}")
    control = asyncio.run(
        soak(arguments.control_minutes or max(2.0, arguments.minutes / 5), _LEAKING)
    )
    print(f"\ncontrol, a daemon that leaks\n{control.report()}")
    caught = [text for text in control.findings() if text.startswith(("memory", "descriptors"))]
    print("caught: " + "; ".join(caught) if caught else "FAILED: the leak was not noticed")
    return 0 if caught and not outcome.findings() else 1


async def soak(minutes: float, module: str) -> Outcome:
    """Runs the load on a new daemon.

    Args:
        minutes: how long.
        module: of the daemon.
    """
    taken: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="multigrain-soak-") as name:
        folder = Path(name)
        images = prepare(folder)
        daemon = serving_daemon(folder, MODELS, ["--devices=cpu:4"], roots=[images], module=module)
        try:
            load = Load(daemon, images)
            async with load.running():
                began = time.monotonic()
                while time.monotonic() - began < 60 * minutes:
                    await asyncio.sleep(_SAMPLE_SECONDS)
                    seconds = time.monotonic() - began
                    taken.append(await asyncio.to_thread(sample, daemon, seconds))
            load.done["wrong answers"] = load.seen.wrong
            codes = dict(load.seen.codes)
            if load.seen.wrong:
                codes["WRONG"] = load.seen.wrong
            return Outcome(taken, codes, load.done)
        finally:
            daemon.end()


def sample(daemon: Daemon, seconds: float) -> Sample:
    """What it holds now."""
    now = samples(daemon)
    memory = 0
    for process in engines(daemon):
        with suppress(psutil.Error):
            memory += process.memory_info().rss
    return Sample(
        seconds=seconds,
        memory=now["process_resident_memory_bytes"],
        descriptors=now["process_open_fds"],
        tasks=now["multigrain_tasks"],
        engine_memory=memory,
    )


if __name__ == "__main__":
    sys.exit(main())
