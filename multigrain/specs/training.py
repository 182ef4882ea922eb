"""The specification of a training job; same names as ``multigrain.v1.TrainingSpec``.

The comments of that message state units, limits and meanings.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from multigrain.specs.base import DeviceSpec, Spec
from multigrain.specs.evaluation import MetricName

TrunkName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "se_resnet50"]

ScheduledTask = Literal["classification", "copy_detection", "groups", "holidays", "ukb", "copydays"]


class DatasetSpec(Spec):
    train_path: str = ""
    val_path: str = ""
    loader_threads: int = Field(0, ge=0, le=256)
    max_unreadable: float = Field(0.05, ge=0, le=1)
    allow_changes: bool = False
    val_fraction: float = Field(0.0, ge=0, le=0.9)
    split_seed: int = Field(0, ge=0, lt=2**63)
    class_balanced: bool = False


class ModelSpec(Spec):
    trunk: TrunkName = "resnet50"
    classes: int = Field(0, ge=0, le=1_000_000)
    image_size: int = Field(224, ge=16, le=1024)
    gem_p: float = Field(3.0, ge=1, le=math.inf)
    learn_gem_p: bool = False
    stem: Literal["imagenet", "small"] = "imagenet"
    zero_init_residual: bool = True
    center_crop: float = Field(0.875, gt=0, le=1)


class ObjectiveSpec(Spec):
    classification_weight: float = Field(0.5, ge=0, le=1)
    instance_loss: Literal["margin", "triplet", "none"] = "margin"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    margin: float = Field(0.2, ge=0, le=2)
    beta_init: float = Field(1.2, gt=0, le=2)
    beta_learning_rate: float = Field(0.1, ge=0, le=100)


class ThorSpec(Spec):
    frequency: int = Field(100, ge=1)
    block_size: int = Field(128, ge=1, le=4096)
    damping_init: float = Field(0.03, gt=0)
    damping_decay: float = Field(0.5, gt=0, le=1)
    damping_min: float = Field(1e-8, gt=0)
    refresh: Literal["fixed", "trace"] = "fixed"
    w1: float = Field(0.01, ge=0)
    w2: float = Field(0.0, ge=0)
    frequency_growth: float = Field(2.0, ge=1, le=1000)
    frequency_max: int = Field(0, ge=0)
    pi_correction: bool = False
    factor_average: float = Field(0.0, ge=0, lt=1)
    kl_clip: float = Field(0.0, ge=0)
    early_refreshes: tuple[int, ...] = ()


class OptimizerSpec(Spec):
    kind: Literal["thor", "momentum", "adamw"] = "thor"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    loss_scale: float = Field(0.0, ge=0)  # 0 = 1 in float32, 1024 in half precision
    thor: ThorSpec = ThorSpec()
    clip_norm: float = Field(0.0, ge=0)
    max_skipped_steps: int = Field(10, ge=1)
    loss_scaling: Literal["auto", "static", "dynamic"] = "auto"
    loss_scale_steps: int = Field(2000, ge=1)
    loss_scale_min: float = Field(1.0, gt=0)
    loss_scale_max: float = Field(2.0**24, gt=0)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)


class LearningRateSpec(Spec):
    kind: Literal["thor", "step", "linear", "cosine"] = "thor"
    init: float = Field(0.05, gt=0)
    end: float = Field(0.0, ge=0)
    warmup_epochs: float = Field(0.0, ge=0)
    decay: float = Field(4.0, ge=0)
    end_epoch: float = Field(0.0, ge=0)  # 0 = the number of epochs
    milestones: tuple[float, ...] = ()
    gamma: float = Field(0.1, gt=0, le=1)


class ScheduleSpec(Spec):
    epochs: int = Field(45, ge=1)
    max_steps: int = Field(0, ge=0)
    batch_size: int = Field(30, ge=1, le=65_536)  # a multiple of the 3 repeats
    learning_rate: LearningRateSpec = LearningRateSpec()
    length_factor: float = Field(1.0, gt=0, le=100)


class AugmentationSpec(Spec):
    kind: Literal["full", "autoaugment", "plain"] = "full"
    repeats: int = Field(3, ge=1, le=64)
    crop_scale_min: float = Field(0.08, gt=0, le=1)
    crop_scale_max: float = Field(1.0, gt=0, le=1)
    crop_ratio_min: float = Field(0.75, gt=0)
    crop_ratio_max: float = Field(4 / 3, gt=0)
    flip: float = Field(0.5, ge=0, le=1)
    color_jitter: float = Field(0.3, ge=0, le=1)
    lighting: float = Field(0.1, ge=0, le=1)
    rotation: float = Field(0.0, ge=0, le=180)


class CheckpointSpec(Spec):
    every_epochs: int = Field(1, ge=0)
    every_steps: int = Field(0, ge=0)
    keep: int = Field(5, ge=1)


class EvaluationScheduleSpec(Spec):
    every_epochs: int = Field(0, ge=0)
    metric: MetricName = "top1"
    tasks: tuple[ScheduledTask, ...] = ("classification",)
    retrieval_path: str = ""
    group_queries: Literal["all", "first"] = "all"
    patience: int = Field(0, ge=0, le=1_000_000)


class TrainingSpec(Spec):
    """A whole training job."""

    preset: str = ""
    dataset: DatasetSpec = DatasetSpec()
    model: ModelSpec = ModelSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    augmentation: AugmentationSpec = AugmentationSpec()
    precision: Literal["fp32", "fp16"] = "fp32"
    checkpointing: CheckpointSpec = CheckpointSpec()
    evaluation: EvaluationScheduleSpec = EvaluationScheduleSpec()
    initial_weights: str = ""
    devices: DeviceSpec = DeviceSpec()
    seed: int = Field(0, ge=0, lt=2**63)
    max_restarts: int = Field(3, ge=0, le=1000)
