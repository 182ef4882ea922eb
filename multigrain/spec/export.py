"""What an export job writes. Same names as ``multigrain.v1.ExportSpec``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from multigrain.spec.base import DeviceSpec, Spec, WeightsSource

Format = Literal["mindir", "onnx", "air"]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class ExportSpec(Spec):
    weights: WeightsSource = WeightsSource()
    model_name: str = Field("", pattern=r"^$|" + NAME_PATTERN)
    version: int = Field(0, ge=0)
    formats: tuple[Format, ...] = ("mindir", "onnx")
    resolution: int = Field(0, ge=0, le=4096)
    devices: DeviceSpec = DeviceSpec()
    trunk: str = ""
    gem_p: float = Field(0.0, ge=0)
