"""HTML that cannot be injected into: whatever is not markup already is escaped."""

from __future__ import annotations

import html
import re

# Names and errors come from clients. Control characters have no glyph, and those that turn the
# direction of writing make one text look like another.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)

_VOID = frozenset(("meta", "link", "br", "hr"))


class Markup(str):
    """HTML, as ``element`` makes it; every other string is text."""

    __slots__ = ()


Child = str | int | None


def text(value: str) -> Markup:
    """Escaped, with what cannot be shown replaced by U+FFFD."""
    return Markup(html.escape(_UNPRINTABLE.sub("\ufffd", value)))


def join(*children: Child) -> Markup:
    """Children one after the other; None is nothing."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else text(str(child))
            for child in children
            if child is not None
        )
    )


def element(name: str, /, *children: Child, **attributes: str | int | float | None) -> Markup:
    """``<name attributes>children</name>``.

    Args:
        attributes: ``aria_label`` is ``aria-label``, ``class_`` is ``class``; None is left out.
    """
    head = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{head}>")
    return Markup(f"<{name}{head}>{join(*children)}</{name}>")
