"""Utilization and memory of the host's GPUs, for the status page."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import structlog

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
