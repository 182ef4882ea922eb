"""Readings of nvidia-smi."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from multigrain_server.metrics.gpus import GpuMonitor, GpuReading, parse_nvidia_smi, register_gpus


def test_nvidia_smi_lines_are_parsed_and_unsupported_gpus_left_out() -> None:
    text = "0, 35, 1024, 81559\n1, [N/A], 10, 20\n2, 0, 0, 100\n\n"
    assert parse_nvidia_smi(text) == [
        GpuReading(0, 0.35, 1 << 30, 81559 << 20),
        GpuReading(2, 0.0, 0, 100 << 20),
    ]


async def test_gpus_are_read_again_after_nvidia_smi_failed_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0, 35, 1024, 2048\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    gpus = GpuMonitor()
    watch = asyncio.create_task(gpus.watch(0.01))
    try:
        async with asyncio.timeout(20):
            for change, read in (
                (lambda: None, True),
                (lambda: tool.rename(tmp_path / "away"), False),
                (lambda: (tmp_path / "away").rename(tool), True),
            ):
                change()
                while bool(gpus.readings) is not read:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    finally:
        watch.cancel()
    assert [gpu.utilization for gpu in gpus.readings] == [0.35]


def test_gpus_have_their_readings() -> None:
    registry = CollectorRegistry()
    register_gpus(registry, lambda: [GpuReading(1, 0.5, 3, 8)])
    found = {(s.name, s.labels["gpu"]): s.value for m in registry.collect() for s in m.samples}
    assert found == {
        ("multigrain_gpu_utilization_ratio", "1"): 0.5,
        ("multigrain_gpu_memory_used_bytes", "1"): 3,
        ("multigrain_gpu_memory_total_bytes", "1"): 8,
    }
