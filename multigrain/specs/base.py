"""The base of all specifications: unknown keys are errors, instances are immutable."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """A frozen part of a specification. An unknown key is an error."""

    # JSON has no infinity (gem_p of max pooling): it is written "Infinity", like in protobuf.
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=True, ser_json_inf_nan="strings"
    )


class DeviceSpec(Spec):
    """Devices of a job; see ``multigrain.v1.DeviceSpec`` for units and defaults."""

    target: Literal["cpu", "gpu", "ascend"] = "cpu"
    count: int = Field(1, ge=1, le=4096)
    launcher: Literal["msrun", "rank-table"] = "msrun"
    rank_table: str = ""
    cluster_timeout_seconds: float = Field(300.0, ge=5, le=86_400)
    threads_per_worker: int = Field(0, ge=0, le=1024)
    stall_timeout_seconds: float = Field(1800.0, ge=0)
    first_step_timeout_seconds: float = Field(3600.0, ge=0)


class WeightsSource(Spec):
    """Source of weights: exactly one of job_id, checkpoint_path and model is not empty."""

    job_id: str = ""
    checkpoint_path: str = ""
    model: str = ""
    checkpoint: str = "last"
