"""AutoAugment's ImageNet policy (Cubuk et al., arXiv 1805.09501, table 9)."""

from __future__ import annotations

from random import Random
from typing import Final

from PIL import Image, ImageEnhance, ImageOps

_FILL: Final = (128, 128, 128)
_LEVELS: Final = 10

# (operation, probability, magnitude 0..9) twice; doubles stand in the paper's table too.
POLICY: Final = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)


def autoaugment(image: Image.Image, random: Random) -> Image.Image:
    """Applies one random pair of operations, each with its probability, to an RGB picture."""
    for name, probability, magnitude in random.choice(POLICY):
        # Drawn in any case, so that what follows does not depend on what was applied.
        chance, sign = random.random(), random.choice((-1.0, 1.0))
        if chance < probability:
            image = apply(image, name, magnitude, sign)
    return image


def apply(image: Image.Image, name: str, magnitude: int, sign: float) -> Image.Image:
    """One operation.

    Args:
        image: RGB.
        name: of the operation.
        magnitude: 0..9, mapped linearly to the operation's range.
        sign: +1 or -1, for the operations that have two directions.
    """
    share = magnitude / (_LEVELS - 1)
    if name == "shear_x":
        shear = (1, sign * 0.3 * share, 0, 0, 1, 0)
        return image.transform(
            image.size, Image.Transform.AFFINE, shear, Image.Resampling.BICUBIC, fillcolor=_FILL
        )
    if name == "rotate":
        return image.rotate(sign * 30 * share, fillcolor=_FILL)
    if name == "posterize":
        return ImageOps.posterize(image, 8 - round(4 * share))
    if name == "solarize":
        return ImageOps.solarize(image, round(256 * (1 - share)))
    if name == "autocontrast":
        return ImageOps.autocontrast(image)
    if name == "equalize":
        return ImageOps.equalize(image)
    if name == "invert":
        return ImageOps.invert(image)
    factor = 1.0 + sign * 0.9 * share
    if name == "color":
        return ImageEnhance.Color(image).enhance(factor)
    if name == "contrast":
        return ImageEnhance.Contrast(image).enhance(factor)
    if name == "sharpness":
        return ImageEnhance.Sharpness(image).enhance(factor)
    raise ValueError(f"no operation named {name!r}")
