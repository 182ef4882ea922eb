"""Numbers, sizes and times as a page shows them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from markupsafe import Markup

from multigrain.text import UNPRINTABLE

# Names and errors come from clients. Control characters have no glyph, and those that change the
# direction of writing make one text look like another. Tracebacks have lines.
_KEPT = "\t\n"
_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def printable(value: object) -> object:
    """A text with U+FFFD in place of what cannot be shown; None is nothing.

    Markup and other values stay as they are.
    """
    if value is None:
        return ""
    if isinstance(value, str) and not isinstance(value, Markup):
        return UNPRINTABLE.sub(lambda match: match[0] if match[0] in _KEPT else "\ufffd", value)
    return value


def shorten(value: str, longest: int = 240) -> str:
    """The beginning of a text, which a client can make as long as it likes."""
    return value if len(value) <= longest else value[: longest - 1] + "…"


def number(value: float) -> str:
    """At most four significant digits."""
    if not math.isfinite(value):
        return str(value)
    value += 0.0  # no -0
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.{max(0, 3 - max(0, len(str(int(abs(value)))) - 1))}f}"
    return f"{value:.2e}"


def count(value: float) -> str:
    """A whole number with a thousands separator."""
    return f"{round(value) + 0:,}" if math.isfinite(value) else str(value)


def size(value: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds in the unit that fits, with the next smaller unit if there are fewer than ten."""
    if not math.isfinite(seconds) or seconds < 0:
        return "unknown"
    for index, (length, name) in enumerate(_UNITS):
        whole, rest = divmod(seconds, length)
        if whole >= 10 or (whole and index == len(_UNITS) - 1):
            return f"{whole:.0f} {name}"
        if whole:
            below, smaller = _UNITS[index + 1]
            return f"{whole:.0f} {name} {rest // below:.0f} {smaller}"
    return "0 s"


def milliseconds(seconds: float) -> str:
    """A latency in seconds as milliseconds, or as seconds from ten on."""
    ms = 1000 * seconds
    if ms >= 10_000:
        return f"{seconds:.1f} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2g} ms"


def elapsed(start: str, end: str, now: datetime) -> str:
    """The time between two RFC 3339 times, until now if it has not ended; "" if not begun."""
    try:
        since = datetime.fromisoformat(start)
        until = datetime.fromisoformat(end) if end else now
    except ValueError:
        return ""
    return duration(max(0.0, round((until - since).total_seconds())))


def ago(time: str, now: datetime) -> Markup:
    """How long ago an RFC 3339 time was, with the exact time as a tooltip; "" for no time."""
    try:
        then = datetime.fromisoformat(time).astimezone(UTC)
    except ValueError:
        return Markup()
    seconds = max(0.0, (now - then).total_seconds())
    exact = then.strftime("%Y-%m-%d %H:%M:%S UTC")
    text = "just now" if seconds < 5 else f"{duration(round(seconds))} ago"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(time, exact, text)
