"""A curve in block characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCKS = " ▁▂▃▄▅▆▇█"


def resample(values: Sequence[float], width: int) -> list[float]:
    """At most ``width`` values: the mean of each of so many equal parts. What is not finite
    is left out."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) <= width:
        return finite
    result = []
    for column in range(width):
        part = finite[column * len(finite) // width : (column + 1) * len(finite) // width]
        result.append(sum(part) / len(part))
    return result


def block_curve(values: Sequence[float], width: int, height: int) -> list[str]:
    """``height`` lines of at most ``width`` characters; the largest value reaches the top, the
    smallest keeps one eighth of a line, so that it is seen."""
    columns = resample(values, width)
    if not columns:
        return [""] * height
    low, high = min(columns), max(columns)
    steps = height * 8 - 1
    span = high - low
    levels = [1 + round((value - low) / span * steps) if span else 1 for value in columns]
    return [
        "".join(BLOCKS[min(max(level - row * 8, 0), 8)] for level in levels)
        for row in range(height - 1, -1, -1)
    ]
