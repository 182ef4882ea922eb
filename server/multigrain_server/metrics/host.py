"""Series of this host's CPU, memory and disk, and of its GPUs where they tell."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

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
    """Reads ``nvidia-smi --query-gpu=... --format=csv,noheader,nounits``. What a GPU does not
    support reads "[N/A]" and makes its line be left out."""
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


class HostCollector(Collector):
    """CPU, memory and disk at each scrape; GPUs as last read by ``watch_gpus``.

    Args:
        data_dir: the daemon's data directory.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._gpus: list[GpuReading] = []
        psutil.cpu_percent()  # the first reading only begins the measurement

    @property
    def gpus(self) -> tuple[GpuReading, ...]:
        """As last read."""
        return tuple(self._gpus)

    async def watch_gpus(self, seconds: float = 10.0) -> None:
        """Reads the GPUs again and again; returns at once on a host without ``nvidia-smi``."""
        tool = shutil.which("nvidia-smi")
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
                )
            except OSError as error:  # short of processes or open files: not for ever, it may be
                _log.warning("GPUs not read", reason=str(error))
                self._gpus = []
            else:
                output, _ = await process.communicate()
                self._gpus = parse_nvidia_smi(output.decode(errors="replace"))
            await asyncio.sleep(seconds)

    def collect(self) -> Iterator[Metric]:
        memory = psutil.virtual_memory()
        yield GaugeMetricFamily(
            "multigrain_host_cpu_ratio",
            "Share of all cores in use since the last scrape.",
            psutil.cpu_percent() / 100,
        )
        yield GaugeMetricFamily(
            "multigrain_host_memory_used_bytes",
            "Memory that is not available to new processes.",
            memory.total - memory.available,
        )
        yield GaugeMetricFamily(
            "multigrain_host_memory_total_bytes", "Memory of the host.", memory.total
        )
        disk = shutil.disk_usage(self._data_dir)
        yield GaugeMetricFamily(
            "multigrain_data_free_bytes", "Free space where the data directory is.", disk.free
        )
        yield GaugeMetricFamily(
            "multigrain_data_total_bytes", "Size of the file system it is on.", disk.total
        )
        busy = GaugeMetricFamily(
            "multigrain_gpu_utilization_ratio", "Share of time a GPU was busy.", labels=["gpu"]
        )
        used = GaugeMetricFamily(
            "multigrain_gpu_memory_used_bytes", "Device memory in use.", labels=["gpu"]
        )
        total = GaugeMetricFamily(
            "multigrain_gpu_memory_total_bytes", "Device memory.", labels=["gpu"]
        )
        for gpu in self._gpus:
            busy.add_metric([str(gpu.index)], gpu.utilization)
            used.add_metric([str(gpu.index)], gpu.memory_used)
            total.add_metric([str(gpu.index)], gpu.memory_total)
        yield from (busy, used, total)
