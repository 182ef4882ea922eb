"""Writes a small folder of photographs, for those who have none at hand.

``python -m examples.photographs --out photos`` cuts photographs that scikit-learn and matplotlib
ship into places and writes ``photos/<place>/<number>.jpg``: each file is another frame of its
place, as if the camera had moved, with another exposure. Two things are as in many folders: a file
is there twice, and one is damaged.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

# Place -> the photograph and the share of it that shows the place: left, top, right, bottom.
_PLACES: Final = {
    "temple-roof": ("china", (0.25, 0.2, 0.8, 0.6)),
    "temple-stairs": ("china", (0.1, 0.6, 0.65, 1.0)),
    "sky": ("china", (0.0, 0.0, 0.6, 0.3)),
    "flower": ("flower", (0.3, 0.15, 0.85, 0.85)),
    "leaves": ("flower", (0.0, 0.5, 0.4, 1.0)),
    "admiral": ("hopper", (0.2, 0.05, 0.8, 0.6)),
}
_QUALITY: Final = 90


def write_photographs(root: Path, *, each: int = 24, side: int = 160, seed: int = 0) -> int:
    """Writes the folder; existing files are overwritten with the same content.

    Args:
        root: the folder.
        each: photographs of each place.
        side: of a photograph, in pixels.
        seed: of the frames.

    Returns:
        The number of files.
    """
    sources = _sources()
    random = np.random.default_rng(seed)
    for place, (name, box) in _PLACES.items():
        folder = root / place
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            _frame(sources[name], box, side, random).save(
                folder / f"{number:03}.jpg", quality=_QUALITY
            )
    first = root / next(iter(_PLACES))
    shutil.copyfile(first / "000.jpg", first / "000 (copy).jpg")
    (first / "damaged.jpg").write_bytes((first / "001.jpg").read_bytes()[:500])
    return each * len(_PLACES) + 2


def _sources() -> dict[str, Image.Image]:
    import matplotlib
    from sklearn.datasets import load_sample_images

    china, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    sample = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return {"china": china, "flower": flower, "hopper": Image.open(sample).convert("RGB")}


def _frame(
    source: Image.Image,
    box: tuple[float, float, float, float],
    side: int,
    random: np.random.Generator,
) -> Image.Image:
    """A square frame within a box, 55 to 95 % of its shorter side, in another light."""
    left, top, right, bottom = np.array(box) * (source.size * 2)
    length = random.uniform(0.55, 0.95) * min(right - left, bottom - top)
    x, y = random.uniform(left, right - length), random.uniform(top, bottom - length)
    corners = (x, y, x + length, y + length)
    crop = source.resize((side, side), Image.Resampling.BICUBIC, corners)
    if random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = (np.asarray(crop, np.float64) / 255) ** random.uniform(0.7, 1.4)
    pixels *= random.uniform(0.8, 1.15, 3)
    pixels += random.normal(scale=0.015, size=(side, side, 1))  # sensor noise
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--each", type=int, default=24, help="photographs of each place")
    arguments = parser.parse_args()
    print(write_photographs(arguments.out, each=arguments.each), "photographs in", arguments.out)


if __name__ == "__main__":
    main()
