"""Small training jobs, and waiting for their losses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.e2e.daemon import Daemon

# For tests that are not about the optimizer: compiles in a quarter of the time that THOR takes.
# tests/train shows that THOR resumes from its state bit for bit.
MOMENTUM = {"kind": "momentum"}


def small_training(digits: Path, *, epochs: int, workers: int = 1, **more: Any) -> dict[str, Any]:
    """ResNet-18 on four digits: 12 images a step and worker, 8 steps an epoch in all."""
    spec: dict[str, Any] = {
        "preset": "digits-demo",
        "dataset": {"train_path": str(digits / "train"), "val_path": str(digits / "val")},
        "schedule": {"epochs": epochs, "batch_size": 12, "length_factor": 1.0},
        "devices": {"target": "cpu", "count": workers},
        "optimizer": {"thor": {"frequency": 4}},
        "evaluation": {"every_epochs": 0},
    }
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(spec.get(key), dict):
            spec[key] = {**spec[key], **value}
        else:
            spec[key] = value
    return spec


def wait_for_losses(daemon: Daemon, job_id: str, count: int) -> None:
    """Waits until the job's event log contains ``count`` loss points."""
    log = daemon.data_dir / "jobs" / job_id / "events.jsonl"
    deadline = time.monotonic() + 180
    while log.read_text().count('"loss":{') < count:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
