"""64 photographs of about 500 x 375 pixels, the same on every machine.

They are cropped from the two photographs that scikit-learn ships (a temple in China and a flower)
with random frames, rotations, tones and noise, so that all differ and the files are as large as a
camera's. Use them for timing and to compare numerical results, not to judge a trained network.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COUNT = 64
_QUALITY = 88
# Width and height; most photographs are landscape.
_SIZES = ((500, 375), (500, 333), (500, 400), (375, 500))


def photographs(count: int = COUNT) -> list[bytes]:
    """JPEG files, 4:2:0, 30 to 110 kB. The first ones are the same for every ``count``."""
    from sklearn.datasets import load_sample_images

    sources = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    return [_photograph(sources[number % len(sources)], number) for number in range(count)]


def thumbnails(count: int = 16) -> list[bytes]:
    """The first photographs with a long side of 40 pixels, about 1 kB each: for fast networks."""
    found = []
    for data in photographs(count):
        picture = Image.open(io.BytesIO(data))
        picture.thumbnail((40, 40))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=_QUALITY)
        found.append(out.getvalue())
    return found


def _photograph(source: Image.Image, number: int) -> bytes:
    random = np.random.default_rng(number)
    width, height = _SIZES[number % len(_SIZES)]
    corners = _frame(source.size, width / height, random)
    picture = source.transform(
        (width, height), Image.Transform.QUAD, corners, Image.Resampling.BICUBIC
    )
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(picture, np.float64) / 255
    pixels = pixels ** random.uniform(0.75, 1.35) * random.uniform(0.85, 1.1, size=3)
    pixels += random.normal(scale=0.012, size=(height, width, 1))  # sensor noise
    out = io.BytesIO()
    Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).save(
        out, "JPEG", quality=_QUALITY
    )
    return out.getvalue()


def _frame(size: tuple[int, int], aspect: float, random: np.random.Generator) -> tuple[float, ...]:
    """Corners of a slightly rotated rectangle inside the source, in the order of QUAD: upper left,
    lower left, lower right, upper right."""
    full = np.array(size, float)
    angle = random.uniform(-0.06, 0.06)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    half = np.array([aspect, 1.0]) / 2
    signs = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)])
    offsets: NDArray[np.float64] = (signs * half) @ turn.T
    reach = np.abs(offsets).max(axis=0)  # half width and height of the rotated rectangle
    offsets *= random.uniform(0.7, 1.0) * (full / (2 * reach)).min()
    reach = np.abs(offsets).max(axis=0)
    middle = random.uniform(reach, full - reach)
    return tuple((offsets + middle).ravel().tolist())
