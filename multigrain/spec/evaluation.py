"""What an evaluation job measures. Same names as ``multigrain.v1.EvaluationSpec``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from multigrain.spec.base import DeviceSpec, Spec, WeightsSource

Task = Literal["classification", "copy_detection", "groups", "holidays", "ukb", "copydays"]
# Tasks of a folder with one sub-folder a class or group; each other has a layout of its own.
FOLDER_TASKS: frozenset[Task] = frozenset({"classification", "copy_detection", "groups"})


class EvaluationSpec(Spec):
    weights: WeightsSource = WeightsSource()
    dataset_path: str = ""
    tasks: tuple[Task, ...] = ("classification", "copy_detection")
    resolution: int = Field(0, ge=0, le=4096)
    batch_size: int = Field(32, ge=1, le=4096)
    seed: int = Field(0, ge=0, lt=2**63)
    devices: DeviceSpec = DeviceSpec()
    trunk: str = ""
    gem_p: float = Field(0.0, ge=0)
    transform: Literal["crop", "rect"] = "crop"
    group_queries: Literal["all", "first"] = "all"
