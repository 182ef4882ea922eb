"""What the host tells of itself."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from multigrain_server.metrics.host import GpuReading, HostCollector, parse_nvidia_smi


def test_gpu_lines_are_read_in_base_units_and_unsupported_ones_left_out() -> None:
    text = "0, 35, 1024, 81559\n1, [N/A], 10, 20\n2, 0, 0, 100\n\n"
    assert parse_nvidia_smi(text) == [
        GpuReading(0, 0.35, 1 << 30, 81559 << 20),
        GpuReading(2, 0.0, 0, 100 << 20),
    ]


def test_cpu_memory_and_disk_are_always_there_and_gpus_only_if_read(tmp_path: Path) -> None:
    names = {metric.name for metric in HostCollector(tmp_path).collect() if metric.samples}
    assert names == {
        "multigrain_host_cpu_ratio",
        "multigrain_host_memory_used_bytes",
        "multigrain_host_memory_total_bytes",
        "multigrain_data_free_bytes",
        "multigrain_data_total_bytes",
    }


async def test_gpus_are_read_again_after_their_tool_could_not_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0, 35, 1024, 2048\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    host = HostCollector(tmp_path)
    watch = asyncio.create_task(host.watch_gpus(0.01))
    try:
        async with asyncio.timeout(20):
            for change, read in (
                (lambda: None, True),
                (lambda: tool.rename(tmp_path / "away"), False),
                (lambda: (tmp_path / "away").rename(tool), True),
            ):
                change()
                while bool(host.gpus) is not read:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    finally:
        watch.cancel()
    assert [gpu.utilization for gpu in host.gpus] == [0.35]


def test_each_series_of_the_host_has_the_figure_that_it_is_named_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SimpleNamespace(total=100, available=30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 50.0)
    disk = SimpleNamespace(total=1000, used=900, free=50)  # 50 are kept back for root
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: disk)
    host = HostCollector(tmp_path)
    host._gpus = [GpuReading(1, 0.5, 3, 4)]
    found = {sample.name: sample.value for metric in host.collect() for sample in metric.samples}
    assert found == {
        "multigrain_host_cpu_ratio": 0.5,
        "multigrain_host_memory_used_bytes": 70,
        "multigrain_host_memory_total_bytes": 100,
        "multigrain_data_free_bytes": 50,
        "multigrain_data_total_bytes": 1000,
        "multigrain_gpu_utilization_ratio": 0.5,
        "multigrain_gpu_memory_used_bytes": 3,
        "multigrain_gpu_memory_total_bytes": 4,
    }
