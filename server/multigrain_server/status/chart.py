"""Curves as SVG, drawn here: no script, no library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from multigrain_server.status.curve import CurvePoint
from multigrain_server.status.markup import Markup, element
from multigrain_server.status.words import figure

_TERMS: tuple[tuple[str, str, Callable[[CurvePoint], float]], ...] = (
    ("total", "loss", lambda point: point.loss),
    ("classification", "classification", lambda point: point.classification),
    ("instance", "instance", lambda point: point.instance),
)


@dataclass(frozen=True)
class _Frame:
    """From steps and losses to places: ``left`` .. ``right`` and ``bottom`` .. ``top``."""

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
    known = [point for point in points if _shown(point.loss)]
    if len(known) < 2:
        return Markup("")
    values = [point.loss for point in known]
    frame = _Frame(known[0].step, known[-1].step, min(values), max(values), 1, 119, 2, 26)
    return element(
        "svg",
        _line(frame, points, _TERMS[0][2], "total"),
        viewBox="0 0 120 28",
        class_="spark",
        role="img",
        aria_label=_said(known),
    )


def chart(points: Sequence[CurvePoint]) -> Markup:
    """Every term over the steps, with axes and a legend; "" if there are fewer than two points.

    Its numbers are HTML beside the drawing: they keep their size where that is stretched.
    """
    known = [point for point in points if _shown(point.loss)]
    if len(known) < 2:
        return Markup("")
    terms = [term for term in _TERMS if any(term[2](point) for point in known)] or [_TERMS[0]]
    values = [v for _, _, of in terms for point in known if _shown(v := of(point))]
    ticks = _ticks(min(values), max(values))
    frame = _Frame(known[0].step, known[-1].step, ticks[0], ticks[-1], 0, 600, 0, 200)
    grid = [
        element("line", x1=0, x2=600, y1=_n(y), y2=_n(y), class_="grid")
        for y in map(frame.y, ticks)
    ]
    attempts = [
        element(
            "line",
            element("title", f"attempt {after.attempt}"),
            x1=_n(frame.x(after.step)),
            x2=_n(frame.x(after.step)),
            y1=0,
            y2=200,
            class_="attempt",
        )
        for before, after in pairwise(known)
        if after.attempt != before.attempt
    ]
    drawing = element(
        "svg",
        *grid,
        *attempts,
        *(_line(frame, points, of, name) for name, _, of in reversed(terms)),
        viewBox="0 0 600 200",
        preserveAspectRatio="none",
        role="img",
        aria_label=_said(known),
    )
    legend = [
        element("li", element("i", class_=f"key {name}"), label, " ", _value(of(known[-1])))
        for name, label, of in terms
    ]
    return element(
        "figure",
        element(
            "div", *(element("span", f"{tick:.6g}") for tick in reversed(ticks)), class_="ticks"
        ),
        drawing,
        element(
            "div",
            element("span", f"step {known[0].step}"),
            element("span", known[-1].step),
            class_="steps",
        ),
        element("ul", *legend, class_="legend"),
        class_="chart",
    )


def _said(points: Sequence[CurvePoint]) -> str:
    first, last = points[0], points[-1]
    return (
        f"Loss from {figure(first.loss)} at step {first.step} "
        f"to {figure(last.loss)} at step {last.step}"
    )


def _value(value: float) -> Markup:
    return element("b", figure(value))


def _line(
    frame: _Frame, points: Sequence[CurvePoint], of: Callable[[CurvePoint], float], name: str
) -> Markup:
    """A path with a gap where a step had no loss."""
    path, pen = [], "M"
    for point in points:
        value = of(point)
        if _shown(value):
            path.append(f"{pen}{_n(frame.x(point.step))} {_n(frame.y(value))}")
            pen = "L"
        else:
            pen = "M"
    return element("path", d="".join(path), class_=f"line {name}")


def _shown(value: float) -> bool:
    """Whether there is a place for it: what is as large as this has no scale with the others."""
    return abs(value) < 1e30


def _n(value: float) -> str:
    return f"{value:.1f}"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, two to six of them, from below ``low`` to above ``high``."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = 0.5 * (abs(low) or 1.0)
        low, high = low - pad, high + pad
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]
