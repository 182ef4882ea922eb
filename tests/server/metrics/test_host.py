"""What the host tells of itself."""

from __future__ import annotations

from pathlib import Path

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
