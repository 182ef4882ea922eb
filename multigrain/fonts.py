"""Names in plots: fonts that have their characters, or a number where no font has.

matplotlib's own font, DejaVu Sans, has Latin, Greek, Cyrillic, Arabic and more, but no Chinese,
Japanese or Korean and few emoji: it draws boxes for them, and warns for each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from multigrain.text import printable

_DEFAULT = "DejaVu Sans"
# Joiners, variation selectors and skin tones: they change a neighbor, and no plot needs them.
_MODIFIERS = re.compile("[\u200c\u200d\ufe00-\ufe0f\U0001f3fb-\U0001f3ff]")
_STYLES = re.compile("bold|italic|oblique|light|thin|black|mono|condensed|serif", re.IGNORECASE)
_LENGTH = 24


@dataclass(frozen=True)
class PlotNames:
    """Names as a plot shows them.

    Args:
        shown: one for each name: shortened, escaped, or its number.
        families: font families that have all characters of ``shown``.
        numbered: the names that are shown as their number, because no font has them.
    """

    shown: tuple[str, ...]
    families: list[str]
    numbered: tuple[str, ...]

    @property
    def note(self) -> str:
        """What to tell the user; "" if every name is shown."""
        if not self.numbered:
            return ""
        first = ", ".join(printable(name) for name in self.numbered[:3])
        more = ", ..." if len(self.numbered) > 3 else ""
        return (
            f"{len(self.numbered)} names are plotted as their numbers, because no installed font "
            f"has their characters ({first}{more}): install one, on Debian for example "
            "fonts-noto-cjk"
        )


def plot_names(names: Sequence[str]) -> PlotNames:
    """Prepares names for a plot. Needs matplotlib.

    Looks at the installed fonts only if matplotlib's own lacks a character. A name with a
    character that no font has is shown as "#" and its index.
    """
    texts = [_shorten(printable(name)) for name in names]
    needed = {ord(character) for text in texts for character in text}
    families, missing = [_DEFAULT], needed - _own_characters()
    if missing:
        texts = [_MODIFIERS.sub("", text) for text in texts]
        missing &= {ord(character) for text in texts for character in text}
    fonts = _installed() if missing else iter(())
    for family, characters, path in fonts:
        if missing & characters and _register(path):
            families.append(family)
            missing -= characters
        if not missing:
            break
    shown, numbered = [], []
    for index, (name, text) in enumerate(zip(names, texts, strict=True)):
        unknown = any(ord(character) in missing for character in text)
        shown.append(f"#{index}" if unknown or not text else text)
        if unknown:
            numbered.append(name)
    return PlotNames(tuple(shown), families, tuple(numbered))


def _shorten(name: str) -> str:
    return name if len(name) <= _LENGTH else name[: _LENGTH - 1] + "…"


def _own_characters() -> set[int]:
    from matplotlib import font_manager, ft2font

    return set(ft2font.FT2Font(font_manager.findfont(_DEFAULT)).get_charmap())


def _installed() -> Iterator[tuple[str, set[int], str]]:
    """Family, characters and path of the installed fonts, plain ones first.

    Read from the folders of the system: matplotlib's cache lacks fonts that were installed later.
    """
    from matplotlib import font_manager, ft2font

    def plain_first(path: str) -> tuple[bool, str]:
        return bool(_STYLES.search(Path(path).stem)), path

    for path in sorted(font_manager.findSystemFonts(), key=plain_first):
        try:
            font = ft2font.FT2Font(path)
            # Of a font of bitmaps, such as color emoji, nothing can be drawn; the last resort
            # font has a box for every character.
            if not font.scalable or "last resort" in font.family_name.lower():
                continue
            characters = set(font.get_charmap())
        except (OSError, RuntimeError, ValueError):  # damaged, or a format that is not read
            continue
        yield font.family_name, characters, path


def _register(path: str) -> bool:
    """Has matplotlib find a font file by its family; False if it cannot use it."""
    from matplotlib import font_manager

    known = font_manager.fontManager
    if all(font.fname != path for font in known.ttflist):
        try:
            known.addfont(path)
        except (OSError, RuntimeError, ValueError):
            return False
    return True
