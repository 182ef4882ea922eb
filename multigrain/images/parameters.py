"""Preprocessing parameters, which a model bundle stores.

Evaluation and serving use the same parameters and the same function. Imported by the daemon: no
Pillow here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from multigrain.specs.base import Spec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Of colors in [0, 1]. Others would make the network's input infinite or NaN.
_Mean = Annotated[float, Field(ge=-1000, le=1000)]
_Std = Annotated[float, Field(ge=1e-4, le=1000)]


class Preprocessing(Spec):
    """How an image becomes the network's input.

    Resize the short side to ``resize_short``, crop the center ``size`` x ``size``, scale to
    [0, 1], subtract ``mean``, divide by ``std``; float32, channels first, RGB.

    The usual recipe is resize_short = int(256 / 224 * size); equal numbers mean no margin.
    """

    size: int = Field(ge=1, le=4096)
    resize_short: int = Field(ge=1, le=8192)
    # Like the crops of training, and like the paper's code in both.
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[_Mean, _Mean, _Mean] = IMAGENET_MEAN
    std: tuple[_Std, _Std, _Std] = IMAGENET_STD

    @classmethod
    def standard(cls, size: int, center_crop: float = 0.875) -> Preprocessing:
        """Returns the paper's evaluation transform: short side 256/224 of the crop.

        Args:
            size: side of the crop in pixels.
            center_crop: fraction of the short side that the crop keeps
                (``ModelSpec.center_crop``).
        """
        return cls(size=size, resize_short=int(size / center_crop))
