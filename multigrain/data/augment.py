"""Data augmentation: random views of an image that depend on a seed alone.

All random numbers come from the generator given to ``Augmenter``: the same seed gives the same
view on any machine, with any number of threads, in any order. mindspore.dataset's own random
operators cannot do that: their generators belong to threads.
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
_LUMA = (0.299, 0.587, 0.114)  # luma weights of ITU-R 601, Pillow's conversion to "L"
_CROP_ATTEMPTS = 10
_AUTOAUGMENT_FILL: Final = (128, 128, 128)
_AUTOAUGMENT_LEVELS: Final = 10


class Augmenter:
    """The training transform: crop, flip, rotation, then by kind, then normalization.

    "full" (MultiGrain, table C.1): brightness, contrast and saturation jitter in random order,
    PCA lighting noise, clamp to [0, 1]. The published code also divides by 1 + the lighting's
    standard deviation, which darkens by 9 %; the paper does not mention it, and we do not.
    "autoaugment": the ImageNet policy, without jitter and lighting. "plain": none of these.

    Args:
        spec: kind and strengths.
        size: side of the view in pixels.
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
        """Makes a view of an RGB image: float32 (3, size, size), written to ``out`` if given."""
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
        """Returns a (3, 256) table: pixel value / 255 + offset, clamped to [0, 1], normalized."""
        values = np.clip(np.arange(256) / 255 + offset[:, None], 0.0, 1.0)
        table: NDArray[np.float32] = ((values - self._mean) / self._std).astype(np.float32)
        return table


def random_resized_crop(
    image: Image.Image, size: int, spec: AugmentationSpec, random: Random
) -> Image.Image:
    """Resizes a random crop to a square (Szegedy et al. 2015).

    Its relative area is uniform and its aspect ratio log-uniform. If ten random crops do not fit
    into the image, the crop is the largest centered rectangle with an allowed ratio.
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
    """Rotates about the center; the corners are filled with the mean color of the border.

    The network could recognize rotated views by a fixed fill color.
    """
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (round(value) for value in border.mean(axis=0).tolist())
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=(red, green, blue))


def color_jitter(image: Image.Image, strength: float, random: Random) -> Image.Image:
    """Jitters brightness, contrast and saturation, in random order.

    Each factor is uniform in [max(0, 1 - strength), 1 + strength].
    """
    steps: list[Callable[[Image.Image, float], Image.Image]] = [brightness, contrast, saturation]
    random.shuffle(steps)
    for step in steps:
        image = step(image, random.uniform(max(0.0, 1.0 - strength), 1.0 + strength))
    return image


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Computes x * factor, clipped."""
    return _blend(image, 0.0, factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Computes mean + (x - mean) * factor, clipped; mean = rounded mean of the gray image."""
    counts = np.array(image.convert("L").histogram())
    mean = int(counts @ np.arange(256) / counts.sum() + 0.5)
    return _blend(image, mean, factor)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """Computes gray + (x - gray) * factor, clipped."""
    matrix: list[float] = []
    for row in range(3):
        weights = [luma * (1.0 - factor) for luma in _LUMA]
        weights[row] += factor
        matrix += [*weights, 0.0]
    return image.convert("RGB", tuple(matrix))


def lighting(std: float, random: Random) -> NDArray[np.float64]:
    """Samples PCA lighting noise: vectors @ (alpha * values), alpha ~ N(0, std)^3.

    Returns:
        Offset of R, G, B for pixels in [0, 1].
    """
    alpha = np.array([random.gauss(0.0, std) for _ in range(3)])
    offset: NDArray[np.float64] = LIGHTING_VECTORS @ (alpha * LIGHTING_VALUES)
    return offset


def _blend(image: Image.Image, toward: float, factor: float) -> Image.Image:
    values = np.arange(256) * factor + toward * (1.0 - factor)
    table = np.clip(np.rint(values), 0, 255).astype(int).tolist()
    return image.point(table * 3)


# AutoAugment's ImageNet policy (Cubuk et al., arXiv 1805.09501, table 9): pairs of (operation,
# probability, magnitude 0..9). The duplicates are in the paper's table too.
AUTOAUGMENT_POLICY: Final = (
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
    """Applies a random pair of operations, each with its probability, to an RGB image."""
    for name, probability, magnitude in random.choice(AUTOAUGMENT_POLICY):
        # Always drawn, so that later random numbers do not depend on what was applied.
        chance, sign = random.random(), random.choice((-1.0, 1.0))
        if chance < probability:
            image = apply_operation(image, name, magnitude, sign)
    return image


def apply_operation(image: Image.Image, name: str, magnitude: int, sign: float) -> Image.Image:
    """Applies one operation of AutoAugment.

    Args:
        image: RGB.
        name: the operation.
        magnitude: 0..9, mapped linearly to the operation's range.
        sign: +1 or -1, for operations with two directions.
    """
    level = magnitude / (_AUTOAUGMENT_LEVELS - 1)
    fill = _AUTOAUGMENT_FILL
    if name == "shear_x":
        shear = (1, sign * 0.3 * level, 0, 0, 1, 0)
        return image.transform(
            image.size, Image.Transform.AFFINE, shear, Image.Resampling.BICUBIC, fillcolor=fill
        )
    if name == "rotate":
        return image.rotate(sign * 30 * level, fillcolor=fill)
    if name == "posterize":
        return ImageOps.posterize(image, 8 - round(4 * level))
    if name == "solarize":
        return ImageOps.solarize(image, round(256 * (1 - level)))
    if name == "autocontrast":
        return ImageOps.autocontrast(image)
    if name == "equalize":
        return ImageOps.equalize(image)
    if name == "invert":
        return ImageOps.invert(image)
    factor = 1.0 + sign * 0.9 * level
    if name == "color":
        return ImageEnhance.Color(image).enhance(factor)
    if name == "contrast":
        return ImageEnhance.Contrast(image).enhance(factor)
    if name == "sharpness":
        return ImageEnhance.Sharpness(image).enhance(factor)
    raise ValueError(f"no operation named {name!r}")
