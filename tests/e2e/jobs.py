"""Specifications of small jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
