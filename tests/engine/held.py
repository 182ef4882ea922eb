"""Engines whose batches wait until a test lets them go, and whose decoders fail on request.

Run as ``python -m tests.engine.held`` it is ``python -m multigrain.engine`` with a batcher that
can be held. The test says how many images to wait for in a file that is named after the engine's
process id, below the folder that MULTIGRAIN_TEST_HOLD names. Images that start with the bytes of
a :class:`Fault` are not decoded.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from multigrain.engine import __main__ as engine
from multigrain.engine import decode_lanes, decoder_process, decoders, worker
from multigrain.engine.batcher import Batcher
from multigrain.engine.batching import BatchLatencyEstimator, DropReason, Item, Limits, Schedule
from multigrain.engine.lanes import Lane
from multigrain.sandbox.policies import engine_sandbox

_VARIABLE = "MULTIGRAIN_TEST_HOLD"
DECODE_SECONDS = "MULTIGRAIN_TEST_DECODE_SECONDS"
"""Environment variable: seconds that decoding an image may take, or sleep."""
# An engine has the folder of its test.
_TEMPORARY = (
    tempfile.TemporaryDirectory(prefix="multigrain-hold-") if _VARIABLE not in os.environ else None
)
_FOLDER = _TEMPORARY.name if _TEMPORARY is not None else os.environ[_VARIABLE]
_numbers = itertools.count(1)

#: In place of ``python -m multigrain.engine``.
COMMAND = (sys.executable, "-m", "tests.engine.held")


class Process(Protocol):
    """An engine's process."""

    @property
    def pid(self) -> int: ...


def holdable(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of an engine that :func:`hold` is to hold."""
    # An engine imports nothing from the working folder, but may from absolute paths.
    path = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return {**path, **environment, _VARIABLE: _FOLDER}


def hold(process: Process, items: int) -> None:
    """Keeps batches back until ``items`` images are decoded, once; 0 lets go at once.

    It holds for every image that is sent afterwards.
    """
    path = Path(_FOLDER, str(process.pid))
    aside = path.with_suffix(".new")
    aside.write_text(f"{next(_numbers)} {items}")
    aside.replace(path)


class HeldSchedule(Schedule):
    """Waits with a batch until enough images are decoded; such a batch may have the full size."""

    def __init__(self, limits: Limits, latencies: Mapping[int, BatchLatencyEstimator]) -> None:
        super().__init__(limits, latencies)
        self.wanted = 0
        self._left = 0

    def can_decode(self, lane: Lane) -> bool:
        ahead = len(self._decoded) + len(self._decoding)
        return (bool(self._waiting[lane]) and ahead < self.wanted) or super().can_decode(lane)

    def can_compute(self) -> bool:
        return super().can_compute() and len(self._decoded) >= self.wanted

    def take_batch(self, now_ns: int) -> tuple[list[Item], list[tuple[Item, DropReason]]]:
        items, late = super().take_batch(now_ns)
        self._left = max(0, self._left - len(items))
        return items, late

    def _batch_limit(self, resolution: int, now_ns: int) -> int:
        self._left, self.wanted = self.wanted or self._left, 0
        return self._limits.max_batch if self._left else super()._batch_limit(resolution, now_ns)


class HeldBatcher(Batcher):
    """Has a schedule that can be held."""

    def hold(self, items: int) -> None:
        """Keeps batches back until ``items`` are decoded, once; 0 lets go at once."""
        with self._lock:
            assert isinstance(self._schedule, HeldSchedule)
            self._schedule.wanted = items
            self._may_compute.notify_all()
            self._notify_decoders()


class _ControlledBatcher(HeldBatcher):
    """Reads the test's file: before each image, and often, for the moment when it lets go."""

    def __init__(self, schedule: Schedule, on_drop: Callable[[Item, DropReason], None]) -> None:
        super().__init__(schedule, on_drop)
        self._path = Path(os.environ[_VARIABLE], str(os.getpid()))
        self._read = threading.Lock()
        self._last = ""
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, item: Item) -> None:
        self._apply()
        super().submit(item)

    def _watch(self) -> None:
        while True:
            self._apply()
            time.sleep(0.005)

    def _apply(self) -> None:
        with self._read:
            try:
                text = self._path.read_text()
            except FileNotFoundError:
                return
            if text != self._last:
                self._last = text
                self.hold(int(text.split()[1]))


class Fault:
    """What a decoder process does with an image that starts with these bytes."""

    SPIN = b"!spin"
    SLEEP = b"!sleep"
    CRASH = b"!crash"
    ALLOCATE = b"!allocate"


def faulty(make: Callable[[decoder_process.Parameters], decoder_process.Decode]) -> object:
    """As ``make``, with a decoder that knows :class:`Fault`."""

    def made(parameters: decoder_process.Parameters) -> decoder_process.Decode:
        ordinary = make(parameters)

        def decode(data: bytes, resolution: int) -> object:
            while data.startswith(Fault.SPIN):
                pass
            if data.startswith(Fault.SLEEP):
                time.sleep(1000)
            if data.startswith(Fault.CRASH):
                ctypes.string_at(0)
            if data.startswith(Fault.ALLOCATE):
                bytearray(1 << 36)
            return ordinary(data, resolution)

        return decode

    return made


def main() -> int:
    """An engine; its command line is that of ``multigrain.engine``."""
    vars(decoder_process)["image_decoder"] = faulty(decoder_process.image_decoder)
    seconds = os.environ.get(DECODE_SECONDS)
    if seconds:
        vars(decode_lanes)["_LEAST_SECONDS"] = dict.fromkeys(Lane, float(seconds))
        vars(decode_lanes)["_MOST_SECONDS"] = float(seconds)
        vars(decoders)["_ASLEEP_SECONDS"] = float(seconds)
    vars(worker)["Schedule"], vars(worker)["Batcher"] = HeldSchedule, _ControlledBatcher
    # The test's file is not in the sandbox.
    folder = Path(os.environ[_VARIABLE])
    vars(engine)["engine_sandbox"] = partial(engine_sandbox, also=(folder,))
    return engine.main()


if __name__ == "__main__":
    sys.exit(main())
