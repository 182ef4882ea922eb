"""Nearest neighbors of queries among the held-out images, and a picture of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Image as PilImage

from multigrain_client.images import Classification, FloatArray

TILE = 96
GAP = 14
CAPTION = 20
MARGIN = 28
HEADER = 74
FRAME = 4

BACKGROUND = (250, 250, 248)
INK = (32, 33, 36)
GRAY = (120, 122, 126)
SAME = (38, 140, 80)
OTHER = (200, 60, 50)
ORIGINAL = (40, 100, 200)
NEUTRAL = (90, 92, 96)


@dataclass(frozen=True)
class Neighbor:
    """A gallery image found for a query.

    Attributes:
        path: of the image; the folder's name is its class.
        cosine: of the two embeddings.
        is_original: whether the query is a distorted copy of this image.
    """

    path: Path
    cosine: float
    is_original: bool = False

    @property
    def label(self) -> str:
        return self.path.parent.name


@dataclass(frozen=True)
class Query:
    """An image, its most likely class and its nearest neighbors."""

    source: Path
    image: PilImage
    is_copy: bool
    answer: Classification
    neighbors: tuple[Neighbor, ...]

    @property
    def label(self) -> str:
        return self.source.parent.name


def pick_one_per_class(paths: Sequence[Path], seed: int = 0) -> list[int]:
    """Index of one random path per class."""
    rng = np.random.default_rng(seed)
    by_class: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        by_class.setdefault(path.parent.name, []).append(index)
    return [int(rng.choice(by_class[name])) for name in sorted(by_class)]


def nearest(
    vector: FloatArray,
    gallery: FloatArray,
    paths: Sequence[Path],
    *,
    count: int,
    itself: int,
    is_copy: bool,
) -> tuple[Neighbor, ...]:
    """The ``count`` gallery images with the largest cosine.

    Args:
        vector: float32 (D,), normalized.
        gallery: float32 (N, D), normalized.
        itself: index of the query's source. It is a valid result for a distorted copy only.
    """
    cosines = gallery @ vector
    if not is_copy:
        cosines[itself] = -np.inf
    order = np.argsort(-cosines, kind="stable")[:count]
    return tuple(
        Neighbor(paths[index], float(cosines[index]), is_copy and int(index) == itself)
        for index in order
    )


def draw_contact_sheet(queries: Sequence[Query], path: Path) -> None:
    """Writes a PNG with one row per query: the query on the left, then its neighbors with class
    and cosine. Frames: green for the same class, red for another, blue for the original."""
    columns = max(len(query.neighbors) for query in queries)
    row_height = TILE + CAPTION + GAP
    # A wider gap separates the query from its neighbors.
    width = 2 * MARGIN + TILE + 3 * GAP + columns * (TILE + GAP)
    height = HEADER + len(queries) * row_height + MARGIN
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    title, text = ImageFont.load_default(18), ImageFont.load_default(12)

    draw.text((MARGIN, 16), "Held-out digits and their nearest neighbors", INK, title)
    _legend(draw, text, MARGIN, 44)

    for number, query in enumerate(queries):
        top = HEADER + number * row_height
        kind = "distorted copy" if query.is_copy else "query"
        caption = f"{kind}: {query.answer.label} ({query.answer.probability:.0%})"
        color = INK if query.answer.label == query.label else OTHER
        _tile(sheet, draw, query.image, MARGIN, top, NEUTRAL)
        draw.text((MARGIN, top + TILE + 3), caption, color, text)
        left = MARGIN + TILE + 4 * GAP
        for neighbor in query.neighbors:
            frame = SAME if neighbor.label == query.label else OTHER
            if neighbor.is_original:
                frame = ORIGINAL
            with Image.open(neighbor.path) as image:
                _tile(sheet, draw, image, left, top, frame)
            caption = f"{neighbor.label}   cos {neighbor.cosine:.3f}"
            draw.text((left, top + TILE + 3), caption, INK, text)
            left += TILE + GAP
    sheet.save(path, "PNG")


def _tile(
    sheet: PilImage,
    draw: ImageDraw.ImageDraw,
    image: PilImage,
    left: int,
    top: int,
    frame: tuple[int, int, int],
) -> None:
    inner = TILE - 2 * FRAME
    # Nearest-neighbor scaling keeps the pixels that the model saw.
    scaled = image.convert("RGB").resize((inner, inner), Image.Resampling.NEAREST)
    draw.rounded_rectangle((left, top, left + TILE - 1, top + TILE - 1), radius=6, fill=frame)
    sheet.paste(scaled, (left + FRAME, top + FRAME))


def _legend(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    left: int,
    top: int,
) -> None:
    for color, label in (
        (SAME, "same class"),
        (OTHER, "another class"),
        (ORIGINAL, "the original of the distorted copy"),
    ):
        draw.rounded_rectangle((left, top + 1, left + 13, top + 14), radius=3, fill=color)
        draw.text((left + 20, top), label, GRAY, font)
        left += 20 + int(draw.textlength(label, font)) + 24
