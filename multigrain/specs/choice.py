"""The preset that suits a folder of photographs, for a user who names none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

#: The preset that the others for photographs extend.
PHOTOS: Final = "photos-small"
#: For a run that starts from given weights, whose trunk it takes.
FINETUNE: Final = "photos-finetune"
TINY: Final = 500
"""Images below which a training run needs more epochs than ``photos-small`` has."""
LARGE: Final = 10_000
"""Images from which on a CPU needs hours for as many epochs."""

_NAMES: Final = {"cpu": "CPU", "gpu": "GPU", "ascend": "Ascend"}


@dataclass(frozen=True)
class PresetChoice:
    """A chosen preset.

    Args:
        preset: its name.
        reason: for the user: "photos-small: 2,400 images, CPU".
        values: what the device asks for beside the preset, as overrides.
    """

    preset: str
    reason: str
    values: dict[str, Any]


def choose_preset(images: int, target: str, *, finetune: bool) -> PresetChoice:
    """Chooses a preset.

    Args:
        images: number of images in the training set.
        target: the device: cpu, gpu or ascend.
        finetune: whether the run starts from given weights.
    """
    preset = _preset(images, target, finetune=finetune)
    start = ", from the given weights" if finetune else ""
    reason = f"{preset}: {images:,} images, {_NAMES.get(target, target)}{start}"
    return PresetChoice(preset, reason, {"devices": {"target": target}})


def _preset(images: int, target: str, *, finetune: bool) -> str:
    if finetune:
        return FINETUNE
    if target != "cpu":
        return "photos-gpu"
    if images < TINY:
        return "photos-tiny"
    return PHOTOS if images < LARGE else "photos-large"
