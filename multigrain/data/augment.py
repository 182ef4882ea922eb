"""Random views of a picture, decided by a seed alone.

Every random number comes from the generator given to ``Augmenter``: the same seed gives the
same view on any machine, with any number of threads, in any order. That rules out
mindspore.dataset's own random operators, whose generators belong to a thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from multigrain.images.parameters import IMAGENET_MEAN, IMAGENET_STD
from multigrain.images.preprocess import apply_table
from multigrain.specs.training import AugmentationSpec

# Principal components of ImageNet's RGB values (Krizhevsky et al. 2012), one a column.
LIGHTING_VALUES = np.array([0.2175, 0.0188, 0.0045])
LIGHTING_VECTORS = np.array(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ]
)
_GRAY = (0.299, 0.587, 0.114)  # luma weights of ITU-R 601, Pillow's conversion to "L"
_CROP_ATTEMPTS = 10


class Augmenter:
    """The training transform: crop, flip, rotation, then by kind, then normalization.

    "full" (MultiGrain, table C.1): brightness, contrast and saturation jitter in random order,
    PCA lighting noise, clamp to [0, 1]. The published code also divides by 1 + the lighting's
    standard deviation, darkening by 9 %; the paper does not say so, and we do not.
    "autoaugment": the ImageNet policy, neither jitter nor lighting. "plain": nothing more.

    Args:
        spec: kind and strengths.
        size: side of the result in pixels.
        mean, std: normalization of pixels in [0, 1].
    """

    def __init__(
        self,
        spec: AugmentationSpec,
        size: int,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        self._spec = spec
        self.size = size
        self._mean = np.array(mean)[:, None]
        self._std = np.array(std)[:, None]
        self._plain = self._table(np.zeros(3))

    def __call__(
        self, image: Image.Image, random: Random, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """One view of an RGB picture: float32 (3, size, size), written to ``out`` if given."""
        spec = self._spec
        view = random_resized_crop(image, self.size, spec, random)
        if spec.flip and random.random() < spec.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if spec.rotation:
            view = rotate(view, random.uniform(-spec.rotation, spec.rotation))
        table = self._plain
        if spec.kind == "autoaugment":
            view = autoaugment(view, random)
        elif spec.kind == "full":
            if spec.color_jitter:
                view = color_jitter(view, spec.color_jitter, random)
            if spec.lighting:
                table = self._table(lighting(spec.lighting, random))
        return apply_table(np.asarray(view), table, out)

    def _table(self, offset: NDArray[np.float64]) -> NDArray[np.float32]:
        """(3, 256): pixel value -> clamped, normalized; the offset is added in [0, 1]."""
        values = np.clip(np.arange(256) / 255 + offset[:, None], 0.0, 1.0)
        table: NDArray[np.float32] = ((values - self._mean) / self._std).astype(np.float32)
        return table


def random_resized_crop(
    image: Image.Image, size: int, spec: AugmentationSpec, random: Random
) -> Image.Image:
    """A random rectangle of the picture, scaled to a square (Szegedy et al. 2015).

    Its share of the area is uniform, its aspect ratio uniform in the logarithm. If ten
    draws do not fit into the picture, the largest centered rectangle of an allowed ratio.
    """
    width, height = image.size
    log_ratio = (math.log(spec.crop_ratio_min), math.log(spec.crop_ratio_max))
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * random.uniform(spec.crop_scale_min, spec.crop_scale_max)
        ratio = math.exp(random.uniform(*log_ratio))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            break
    else:
        ratio = min(max(width / height, spec.crop_ratio_min), spec.crop_ratio_max)
        w = max(1, min(width, round(height * ratio)))
        h = max(1, min(height, round(width / ratio)))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Turned about the center; the corners take the mean color of the border.

    A fixed color would be a mark that is on every rotated view and on no test image.
    """
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (round(value) for value in border.mean(axis=0).tolist())
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=(red, green, blue))


def color_jitter(image: Image.Image, strength: float, random: Random) -> Image.Image:
    """Brightness, contrast and saturation by factors in [max(0, 1 - s), 1 + s], in random order."""
    steps: list[Callable[[Image.Image, float], Image.Image]] = [brightness, contrast, saturation]
    random.shuffle(steps)
    for step in steps:
        image = step(image, random.uniform(max(0.0, 1.0 - strength), 1.0 + strength))
    return image


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """x * factor, clipped."""
    return _blend(image, 0.0, factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """mean + (x - mean) * factor, clipped; mean = rounded mean of the gray picture."""
    counts = np.array(image.convert("L").histogram())
    mean = int(counts @ np.arange(256) / counts.sum() + 0.5)
    return _blend(image, mean, factor)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """gray + (x - gray) * factor, clipped."""
    matrix: list[float] = []
    for row in range(3):
        weights = [gray * (1.0 - factor) for gray in _GRAY]
        weights[row] += factor
        matrix += [*weights, 0.0]
    return image.convert("RGB", tuple(matrix))


def lighting(std: float, random: Random) -> NDArray[np.float64]:
    """Offset of R, G, B in [0, 1] units: vectors @ (alpha * values), alpha ~ N(0, std)^3."""
    alpha = np.array([random.gauss(0.0, std) for _ in range(3)])
    offset: NDArray[np.float64] = LIGHTING_VECTORS @ (alpha * LIGHTING_VALUES)
    return offset


def _blend(image: Image.Image, toward: float, factor: float) -> Image.Image:
    values = np.arange(256) * factor + toward * (1.0 - factor)
    table = np.clip(np.rint(values), 0, 255).astype(int).tolist()
    return image.point(table * 3)


# MERGED: AutoAugment's ImageNet policy (Cubuk et al., arXiv 1805.09501, table 9).


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
