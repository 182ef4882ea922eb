"""Loss curves as SVG, without scripts or libraries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from multigrain_server.status.event_log import CurvePoint
from multigrain_server.status.formatting import number

_TERMS: tuple[tuple[str, str, Callable[[CurvePoint], float]], ...] = (
    ("total", "loss", lambda point: point.loss),
    ("classification", "classification", lambda point: point.classification),
    ("instance", "instance", lambda point: point.instance),
)


@dataclass(frozen=True)
class _Frame:
    """Maps steps to ``left`` .. ``right`` and losses to ``bottom`` .. ``top``."""

    first: float
    last: float
    low: float
    high: float
    left: float
    right: float
    top: float
    bottom: float

    def x(self, step: float) -> float:
        span = self.last - self.first or 1.0
        return self.left + (self.right - self.left) * (step - self.first) / span

    def y(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.bottom - (self.bottom - self.top) * (value - self.low) / span


def sparkline(points: Sequence[CurvePoint]) -> Markup:
    """The total loss alone, without axes; "" if there are fewer than two points."""
    known = [point for point in points if _drawable(point.loss)]
    if len(known) < 2:
        return Markup()
    values = [point.loss for point in known]
    frame = _Frame(known[0].step, known[-1].step, min(values), max(values), 1, 119, 2, 26)
    line = _line(frame, points, _TERMS[0][2], "total")
    return Markup(
        f'<svg viewBox="0 0 120 28" class="spark" role="img" aria-label="{_label(known)}">'
        f"{line}</svg>"
    )


def chart(points: Sequence[CurvePoint]) -> Markup:
    """Every term over the steps, with axes and a legend; "" if there are fewer than two points.

    Axis labels and legend are HTML beside the SVG: they keep their size where that is stretched.
    """
    known = [point for point in points if _drawable(point.loss)]
    if len(known) < 2:
        return Markup()
    terms = [term for term in _TERMS if any(term[2](point) for point in known)] or [_TERMS[0]]
    values = [v for _, _, of in terms for point in known if _drawable(v := of(point))]
    ticks = _ticks(min(values), max(values))
    frame = _Frame(known[0].step, known[-1].step, ticks[0], ticks[-1], 0, 600, 0, 200)
    grid = [
        f'<line x1="0" x2="600" y1="{y:.1f}" y2="{y:.1f}" class="grid"></line>'
        for y in map(frame.y, ticks)
    ]
    attempts = [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="200" class="attempt">'
        f"<title>attempt {after.attempt}</title></line>"
        for before, after in pairwise(known)
        if after.attempt != before.attempt
        for x in (frame.x(after.step),)
    ]
    lines = [_line(frame, points, of, name) for name, _, of in reversed(terms)]
    labels = [f"<span>{tick:.6g}</span>" for tick in reversed(ticks)]
    legend = [
        f'<li><i class="key {name}"></i>{label} <b>{number(of(known[-1]))}</b></li>'
        for name, label, of in terms
    ]
    # Numbers and constants only: there is nothing to escape.
    return Markup(
        f'<figure class="chart"><div class="ticks">{"".join(labels)}</div>'
        '<svg viewBox="0 0 600 200" preserveAspectRatio="none" role="img" '
        f'aria-label="{_label(known)}">{"".join((*grid, *attempts, *lines))}</svg>'
        f'<div class="steps"><span>step {known[0].step:,}</span>'
        f'<span>{known[-1].step:,}</span></div><ul class="legend">{"".join(legend)}</ul></figure>'
    )


def _label(points: Sequence[CurvePoint]) -> str:
    """Describes the curve to a screen reader."""
    first, last = points[0], points[-1]
    return (
        f"Loss from {number(first.loss)} at step {first.step} "
        f"to {number(last.loss)} at step {last.step}"
    )


def _line(
    frame: _Frame, points: Sequence[CurvePoint], of: Callable[[CurvePoint], float], name: str
) -> str:
    """A path with a gap where a step had no loss."""
    path, pen = [], "M"
    for point in points:
        value = of(point)
        if _drawable(value):
            path.append(f"{pen}{frame.x(point.step):.1f} {frame.y(value):.1f}")
            pen = "L"
        else:
            pen = "M"
    return f'<path d="{"".join(path)}" class="line {name}"></path>'


def _drawable(value: float) -> bool:
    """Whether it is finite and small enough to share a scale with the others."""
    return abs(value) < 1e30


def _ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers from below ``low`` to above ``high``."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = 0.5 * (abs(low) or 1.0)
        low, high = low - pad, high + pad
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]
