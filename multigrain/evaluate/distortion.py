"""Distorted copies of images, for copy detection. Does not import MindSpore."""

from __future__ import annotations

import io
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from multigrain.data.augment import brightness, contrast, rotate


def distort(image: Image.Image, random: Random) -> Image.Image:
    """Makes a distorted copy: cropped, re-encoded, retouched.

    In this order, each number uniform in its range:

    - always: a random crop of 70 % to 95 % of each side, resized to the image's size;
    - each with probability 1/2: rotation by up to 8 degrees either way; brightness by 0.7 to
      1.3; contrast by 0.7 to 1.3; Gaussian blur with a radius of 0.5 % to 2 % of the short side;
      Gaussian noise with a standard deviation of 3 to 12 of 255;
    - always: JPEG of quality 30 to 90.

    Args:
        image: RGB.
        random: source of all random numbers.

    Returns:
        RGB image of the same size.
    """
    image = _random_crop(image, random)
    if random.random() < 0.5:
        image = rotate(image, random.uniform(-8.0, 8.0))
    if random.random() < 0.5:
        image = brightness(image, random.uniform(0.7, 1.3))
    if random.random() < 0.5:
        image = contrast(image, random.uniform(0.7, 1.3))
    if random.random() < 0.5:
        radius = random.uniform(0.005, 0.02) * min(image.size)
        image = image.filter(ImageFilter.GaussianBlur(radius))
    if random.random() < 0.5:
        image = _add_noise(image, random.uniform(3.0, 12.0), random.getrandbits(64))
    return _jpeg(image, random.randint(30, 90))


def _random_crop(image: Image.Image, random: Random) -> Image.Image:
    width, height = image.size
    w, h = (side * random.uniform(0.7, 0.95) for side in image.size)
    left, top = random.uniform(0.0, width - w), random.uniform(0.0, height - h)
    box = (left, top, left + w, top + h)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def _add_noise(image: Image.Image, std: float, seed: int) -> Image.Image:
    pixels = np.asarray(image)
    noise = np.random.default_rng(seed).normal(0.0, std, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8))


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    file.seek(0)
    copy = Image.open(file, formats=["JPEG"])
    copy.load()
    return copy
