"""The specification of an evaluation job; same names as ``multigrain.v1.EvaluationSpec``.

The comments of that message state units, limits and meanings.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from multigrain.specs.base import DeviceSpec, Spec, WeightsSource

Task = Literal["classification", "copy_detection", "groups", "gem_p", "holidays", "ukb", "copydays"]
# Tasks on a folder with one sub-folder per class or group; the others have their own layouts.
FOLDER_TASKS: frozenset[Task] = frozenset({"classification", "copy_detection", "groups", "gem_p"})

MetricName = Literal[
    "top1", "top5", "loss", "copy_map", "copy_recall1", "groups_map", "groups_recall1",
    "holidays_map", "ukb_recall4", "copydays_map",
]  # fmt: skip
TASK_METRICS: dict[Task, tuple[MetricName, ...]] = {
    "classification": ("top1", "top5", "loss"),
    "copy_detection": ("copy_map", "copy_recall1"),
    "groups": ("groups_map", "groups_recall1"),
    "holidays": ("holidays_map",),
    "ukb": ("ukb_recall4",),
    "copydays": ("copydays_map",),
}
"""The metrics of each task; "gem_p" has none of these."""


class ExponentSpec(Spec):
    """Options of the task "gem_p"; see ``multigrain.v1.ExponentSpec``."""

    method: Literal["search", "finetune"] = "search"
    candidates: tuple[float, ...] = Field((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0), max_length=32)
    images_per_class: int = Field(0, ge=0, le=1_000_000)
    views: int = Field(5, ge=2, le=100)
    learning_rate: float = Field(0.005, gt=0, le=100)

    @property
    def sample_size(self) -> int:
        """Images sampled per class: ``images_per_class``, or the method's default if 0."""
        return self.images_per_class or (2 if self.method == "search" else 50)


class EvaluationSpec(Spec):
    """A whole evaluation job."""

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
    exponent: ExponentSpec = ExponentSpec()
    whiten: bool = False
    held_out: bool = False
