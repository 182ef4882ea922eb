"""Utilization and memory of the host's GPUs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from multigrain.processes import child_environment, find_program

_log = structlog.get_logger(__name__)

_QUERY = "index,utilization.gpu,memory.used,memory.total"


@dataclass(frozen=True)
class GpuReading:
    """One GPU as ``nvidia-smi`` reports it; ``utilization`` 0 to 1, memory in bytes."""

    index: int
    utilization: float
    memory_used: int
    memory_total: int


def parse_nvidia_smi(text: str) -> list[GpuReading]:
    """Parses ``nvidia-smi --query-gpu=... --format=csv,noheader,nounits``.

    A GPU that does not support a value has "[N/A]" there and is left out.
    """
    readings = []
    for line in text.splitlines():
        try:
            index, utilization, used, total = (float(part) for part in line.split(","))
        except ValueError:
            continue
        mib = 1 << 20
        readings.append(
            GpuReading(int(index), utilization / 100, int(used * mib), int(total * mib))
        )
    return readings


class GpuMonitor:
    """Reads the GPUs at an interval; ``readings`` are the latest."""

    def __init__(self) -> None:
        self.readings: tuple[GpuReading, ...] = ()

    async def watch(self, seconds: float = 10.0) -> None:
        """Reads every ``seconds`` until canceled; returns at once without ``nvidia-smi``."""
        tool = find_program("nvidia-smi")
        if tool is None:
            return
        while True:
            try:
                process = await asyncio.create_subprocess_exec(
                    tool,
                    f"--query-gpu={_QUERY}",
                    "--format=csv,noheader,nounits",
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    env=child_environment(os.environ),
                    cwd="/",
                )
            except OSError as error:  # too many processes or open files, which may pass
                _log.warning("cannot run nvidia-smi", reason=str(error))
                self.readings = ()
            else:
                output, _ = await process.communicate()
                self.readings = tuple(parse_nvidia_smi(output.decode(errors="replace")))
            await asyncio.sleep(seconds)


def register_gpus(
    registry: CollectorRegistry, readings: Callable[[], Sequence[GpuReading]]
) -> None:
    """Registers utilization and memory of the host's GPUs.

    Args:
        registry: where to.
        readings: returns the latest ones; none without ``nvidia-smi``.
    """
    registry.register(_Gpus(readings))


class _Gpus(Collector):
    def __init__(self, readings: Callable[[], Sequence[GpuReading]]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        def family(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"multigrain_gpu_{name}", text, labels=["gpu"])

        used_share = family("utilization_ratio", "Share of time in which a GPU computes, 0 to 1.")
        used = family("memory_used_bytes", "Memory in use of a GPU.")
        total = family("memory_total_bytes", "Memory of a GPU.")
        for reading in self._readings():
            gpu = [str(reading.index)]
            used_share.add_metric(gpu, reading.utilization)
            used.add_metric(gpu, reading.memory_used)
            total.add_metric(gpu, reading.memory_total)
        yield from (used_share, used, total)
