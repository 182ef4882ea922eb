"""Queries and their nearest neighbours as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from examples.demo.neighbours import Query

TILE = 96
GAP = 14
CAPTION = 20
MARGIN = 28
HEADER = 74
FRAME = 4

BACKGROUND = (250, 250, 248)
INK = (32, 33, 36)
QUIET = (120, 122, 126)
SAME = (38, 140, 80)
OTHER = (200, 60, 50)
ORIGINAL = (40, 100, 200)
NEUTRAL = (90, 92, 96)


def draw_contact_sheet(queries: Sequence[Query], path: Path) -> None:
    """Writes a PNG with one row a query: the query on the left, its neighbours beside it, each
    with class and cosine. Green frame: same class; red: another; blue: the query's original."""
    columns = max(len(query.neighbours) for query in queries)
    row_height = TILE + CAPTION + GAP
    # The query stands apart from what it found.
    width = 2 * MARGIN + TILE + 3 * GAP + columns * (TILE + GAP)
    height = HEADER + len(queries) * row_height + MARGIN
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    title, text = ImageFont.load_default(18), ImageFont.load_default(12)

    draw.text((MARGIN, 16), "Held-out digits and their nearest neighbours", INK, title)
    _legend(draw, text, MARGIN, 44)

    for number, query in enumerate(queries):
        top = HEADER + number * row_height
        kind = "distorted copy" if query.is_copy else "query"
        said = f"{kind}: {query.answer.label} ({query.answer.probability:.0%})"
        color = INK if query.answer.label == query.label else OTHER
        _tile(sheet, draw, query.picture, MARGIN, top, NEUTRAL)
        draw.text((MARGIN, top + TILE + 3), said, color, text)
        left = MARGIN + TILE + 4 * GAP
        for neighbour in query.neighbours:
            frame = SAME if neighbour.label == query.label else OTHER
            if neighbour.is_original:
                frame = ORIGINAL
            with Image.open(neighbour.path) as picture:
                _tile(sheet, draw, picture, left, top, frame)
            caption = f"{neighbour.label}   cos {neighbour.cosine:.3f}"
            draw.text((left, top + TILE + 3), caption, INK, text)
            left += TILE + GAP
    sheet.save(path, "PNG")


def _tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    picture: Image.Image,
    left: int,
    top: int,
    frame: tuple[int, int, int],
) -> None:
    inner = TILE - 2 * FRAME
    # Nearest: the sheet shows the pixels that the model saw.
    scaled = picture.convert("RGB").resize((inner, inner), Image.Resampling.NEAREST)
    draw.rounded_rectangle((left, top, left + TILE - 1, top + TILE - 1), radius=6, fill=frame)
    sheet.paste(scaled, (left + FRAME, top + FRAME))


def _legend(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    left: int,
    top: int,
) -> None:
    for color, words in (
        (SAME, "same class"),
        (OTHER, "another class"),
        (ORIGINAL, "the original of the distorted copy"),
    ):
        draw.rounded_rectangle((left, top + 1, left + 13, top + 14), radius=3, fill=color)
        draw.text((left + 20, top), words, QUIET, font)
        left += 20 + int(draw.textlength(words, font)) + 24
