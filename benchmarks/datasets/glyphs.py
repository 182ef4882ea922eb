"""A dataset of glyphs of the free fonts that matplotlib ships, with three levels of similarity.

``python -m benchmarks.datasets.glyphs --out DIR`` writes ``DIR/train/<character>/`` and
``DIR/val/<character>/`` with files ``<font>-<sheet>.png`` of 64 x 64 pixels.

- class: the character, A to Z and 0 to 9;
- instance: the character in one font, drawn on three sheets that differ in paper, ink, size, place
  and angle;
- copy: a distortion of one image (made by the augmentation and by the evaluation).

The fonts of ``HELD_OUT``, one per family, are only in ``val``. A random split would put images
of one instance on both sides, and instance retrieval would test memorization. The same version of
Pillow writes the same files.
"""

from __future__ import annotations

import argparse
import string
import zlib
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 64
SHEETS = 3
CHARACTERS = string.ascii_uppercase + string.digits
# All fonts of matplotlib with ordinary Latin letters (no calligraphy, no symbols).
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip
HELD_OUT = frozenset(
    ("DejaVuSans-Oblique", "DejaVuSansMono-Bold", "DejaVuSerif", "STIXGeneralBolIta", "cmss10")
)
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class GlyphFolders:
    """The folders written."""

    train: Path
    val: Path


def write_glyphs(root: Path, sheets: int = SHEETS, characters: str = CHARACTERS) -> GlyphFolders:
    """Writes the dataset; existing files are overwritten with the same content.

    Args:
        root: parent of the folders ``train`` and ``val``.
        sheets: images per character and font.
        characters: the classes.
    """
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for font in FONTS:
        split = "val" if font in HELD_OUT else "train"
        for character in characters:
            folder = root / split / character
            folder.mkdir(parents=True, exist_ok=True)
            for sheet in range(sheets):
                image = draw(fonts / f"{font}.ttf", character, sheet)
                image.save(folder / f"{font}-{sheet}.png")
    return GlyphFolders(root / "train", root / "val")


def instance_of(path: str) -> str:
    """The instance that a file shows: its path without the sheet."""
    return path.rpartition("-")[0]


def font_of(path: str) -> str:
    """The font that a file shows."""
    return instance_of(path).rpartition("/")[2]


def draw(font: Path, character: str, sheet: int) -> Image.Image:
    """One RGB image, determined by the font's name, the character and the sheet."""
    # Not ``hash``, which differs between processes.
    rng = np.random.default_rng(zlib.crc32(f"{font.stem} {character} {sheet}".encode()))
    side = SIZE * _SUPERSAMPLING
    face = ImageFont.truetype(str(font), round(rng.uniform(0.62, 0.8) * side))
    ink = Image.new("L", (side, side))
    shift = rng.uniform(-0.06, 0.06, 2) * side + side / 2
    ImageDraw.Draw(ink).text((shift[0], shift[1]), character, fill=255, font=face, anchor="mm")
    ink = ink.rotate(rng.uniform(-8.0, 8.0), Image.Resampling.BICUBIC)
    ink = ink.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.6) * _SUPERSAMPLING))
    cover = np.asarray(ink.resize((SIZE, SIZE), Image.Resampling.BOX), np.float64) / 255
    # Gray only: with colors any two images would be easy to tell apart.
    paper, color = rng.uniform(150, 255), rng.uniform(0, 105)
    pixels = paper * (1 - cover) + color * cover + rng.normal(0, 6, (SIZE, SIZE))
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    folders = write_glyphs(parser.parse_args().out)
    for path in (folders.train, folders.val):
        print(f"{path}: {sum(1 for _ in path.glob('*/*.png'))} images")


if __name__ == "__main__":
    main()
