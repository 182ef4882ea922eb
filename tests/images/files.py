"""Image files for tests."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

CASES = Path(__file__).parent / "cases"


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colored noise that JPEG preserves."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def corners(width: int = 40, height: int = 20) -> Image.Image:
    """Red at the top left, green top right, blue bottom left, white bottom right."""
    pixels: NDArray[np.uint8] = np.zeros((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    pixels[:top, :left] = (255, 0, 0)
    pixels[:top, left:] = (0, 255, 0)
    pixels[top:, :left] = (0, 0, 255)
    pixels[top:, left:] = (255, 255, 255)
    return Image.fromarray(pixels)


def stored_as(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The pixels that a file with an EXIF orientation stores of an upright picture (H, W, 3)."""
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    return np.ascontiguousarray(stored[orientation])


def reference(data: bytes, form: str, folder: Path) -> NDArray[np.int64]:
    """The first picture of a file as ImageMagick shows it on white: (H, W, 3) in 0..255.

    Skips the test without ImageMagick, except in CI.
    """
    # Other programs are called "convert" too.
    program = shutil.which("magick") or (shutil.which("identify") and shutil.which("convert"))
    if program is None:
        assert "CI" not in os.environ, "ImageMagick is missing: .ci/run installs it"
        pytest.skip("needs ImageMagick: apt-get install imagemagick")
    source, target = folder / f"reference.{form}", folder / "reference.ppm"
    source.write_bytes(data)
    white = ["-background", "white", "-alpha", "remove", "-alpha", "off"]
    command = [program, f"{form}:{source}[0]", *white, "-colorspace", "sRGB", "-depth", "8"]
    subprocess.run([*command, "-type", "TrueColor", f"ppm:{target}"], check=True, timeout=60)
    with Image.open(target) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)
