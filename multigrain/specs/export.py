"""The specification of an export job; same names as ``multigrain.v1.ExportSpec``.

The comments of that message state units, limits and meanings.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from multigrain.specs.base import DeviceSpec, Spec, WeightsSource

Format = Literal["mindir", "onnx", "air"]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class ResolutionSpec(Spec):
    """A resolution head of the bundle; 0 = the checkpoint's resolution or exponent."""

    resolution: int = Field(0, ge=0, le=4096)
    gem_p: float = Field(0.0, ge=0)


class ExportSpec(Spec):
    """A whole export job."""

    weights: WeightsSource = WeightsSource()
    model_name: str = Field("", pattern=r"^$|" + NAME_PATTERN)
    version: int = Field(0, ge=0)
    formats: tuple[Format, ...] = ("mindir", "onnx")
    resolution: int = Field(0, ge=0, le=4096)
    devices: DeviceSpec = DeviceSpec()
    trunk: str = ""
    gem_p: float = Field(0.0, ge=0)
    whitening_path: str = ""
    whitening_images: int = Field(20_000, ge=2, le=10_000_000)
    int8: Literal["auto", "off"] = "auto"
    int8_path: str = ""
    int8_images: int = Field(128, ge=1, le=100_000)
    resolutions: tuple[ResolutionSpec, ...] = Field((), max_length=8)

    @property
    def heads(self) -> tuple[ResolutionSpec, ...]:
        """All exported resolutions, the default one first."""
        return self.resolutions or (ResolutionSpec(resolution=self.resolution, gem_p=self.gem_p),)
