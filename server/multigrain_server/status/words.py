"""Numbers and times as people read them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from multigrain_server.status.markup import Markup, element

_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def figure(value: float) -> str:
    """Four significant digits at most."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.{max(0, 3 - max(0, len(str(int(abs(value)))) - 1))}f}"
    return f"{value:.2e}"


def count(value: float) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes, in the unit that fits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """In the unit that fits; below ten of one, the next smaller one as well."""
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
    """A latency."""
    ms = 1000 * seconds
    if ms >= 10_000:
        return f"{seconds:.1f} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2g} ms"


def ago(time: str, now: datetime) -> Markup | str:
    """How long ago an RFC 3339 time was; the exact time shows under the pointer."""
    try:
        then = datetime.fromisoformat(time)
    except ValueError:
        return ""
    seconds = max(0.0, (now - then.astimezone(UTC)).total_seconds())
    exact = then.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    said = "just now" if seconds < 5 else f"{duration(round(seconds))} ago"
    return element("time", said, datetime=time, title=exact)
