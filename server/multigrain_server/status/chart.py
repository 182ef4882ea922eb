"""Loss curves as SVG, without scripts or libraries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from multigrain.events.records import EvaluationRecord
from multigrain_server.status.event_log import POINTS, CurvePoint
from multigrain_server.status.formatting import number, printable

_TERMS: tuple[tuple[str, str, Callable[[CurvePoint], float]], ...] = (
    ("total", "loss", lambda point: point.loss),
    ("classification", "classification", lambda point: point.classification),
    ("instance", "instance", lambda point: point.instance),
)


_COLORS = 6
_MOST_METRICS = 8


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


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: in the legend.
        style: class of the line: c1 to c6, or the name of a loss term.
        points: (step, value) in the order of steps.
        dots: marks every point.
    """

    label: str
    style: str
    points: tuple[tuple[float, float], ...]
    dots: bool = False

    @property
    def known(self) -> list[tuple[float, float]]:
        return [point for point in self.points if _drawable(point[1])]


def lines_chart(
    title: str, series: Sequence[Series], unit: str = "step", attempts: Sequence[float] = ()
) -> Markup:
    """Several lines over the steps, with axes and a legend; "" if there are no two points.

    Args:
        title: for screen readers.
        series: the lines; their labels are escaped.
        unit: of the horizontal axis.
        attempts: steps at which later attempts of the job began.
    """
    series = [line for line in series if line.known]
    if not series or max(len(line.known) for line in series) < 2:
        return Markup()
    values = [value for line in series for _, value in line.known]
    steps = [step for line in series for step, _ in line.known]
    ticks = _ticks(min(values), max(values))
    frame = _Frame(min(steps), max(steps), ticks[0], ticks[-1], 0, 600, 0, 200)
    parts = [
        f'<line x1="0" x2="600" y1="{y:.1f}" y2="{y:.1f}" class="grid"></line>'
        for y in map(frame.y, ticks)
    ]
    parts += [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="200" class="attempt"></line>'
        for x in map(frame.x, attempts)
    ]
    legend = Markup()
    for line in series:
        path = "L".join(f"{frame.x(step):.1f} {frame.y(value):.1f}" for step, value in line.known)
        parts.append(f'<path d="M{path}" class="line {line.style}"></path>')
        if line.dots and len(line.known) <= POINTS:
            # Lines of no length with round ends: circles would be stretched with the chart.
            dots = "".join(f"M{frame.x(x):.1f} {frame.y(y):.1f}h.01" for x, y in line.known)
            parts.append(f'<path d="{dots}" class="line dots {line.style}"></path>')
        legend += Markup('<li><i class="key {}"></i>{} <b>{}</b></li>').format(
            line.style, printable(line.label), number(line.known[-1][1])
        )
    labels = "".join(f"<span>{tick:.6g}</span>" for tick in reversed(ticks))
    return Markup(
        '<figure class="chart"><div class="ticks">{}</div>'
        '<svg viewBox="0 0 600 200" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
        '<div class="steps"><span>{} {}</span><span>{}</span></div><ul class="legend">{}</ul>'
        "</figure>"
    ).format(
        Markup(labels),
        printable(title),
        Markup("".join(parts)),
        unit,
        f"{min(steps):,.0f}",
        f"{max(steps):,.0f}",
        legend,
    )


def confusion(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> Markup:
    """A confusion matrix: rows are true classes, columns predictions, darker = more of the row."""
    cells = []
    for row, counts in enumerate(matrix):
        total = max(sum(counts), 1)
        for column, images in enumerate(counts):
            if not images:
                continue
            kind = "right" if row == column else "wrong"
            share = images / total
            cells.append(
                Markup(
                    '<rect x="{}" y="{}" width="1" height="1" class="{}" fill-opacity="{}">'
                    "<title>{} taken for {}: {}</title></rect>"
                ).format(
                    column,
                    row,
                    kind,
                    f"{0.15 + 0.85 * share:.2f}",
                    printable(names[row]),
                    printable(names[column]),
                    images,
                )
            )
    columns, rows = len(names), len(matrix)
    return Markup(
        '<svg viewBox="0 0 {} {}" class="confusion" role="img" aria-label="Confusion matrix of {} '
        'classes">{}</svg>'
    ).format(columns, rows, rows, Markup().join(cells))


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


def run_charts(
    points: Sequence[CurvePoint], evaluations: Sequence[EvaluationRecord]
) -> list[tuple[str, Markup]]:
    """The titled charts of one run: losses of training and validation, metrics, learning rate."""
    losses = [
        Series(label, name, tuple((point.step, of(point)) for point in points))
        for name, label, of in reversed(_TERMS)
        if any(of(point) for point in points if _drawable(of(point)))
    ]
    losses.append(_evaluated(evaluations, "loss", "validation loss", "c3"))
    metrics = dict.fromkeys(name for record in evaluations for name in record.metrics)
    shares = [
        _evaluated(evaluations, name, name, f"c{1 + at % _COLORS}")
        for at, name in enumerate(name for name in metrics if name != "loss")
    ]
    rates = Series(
        "learning rate", "total", tuple((point.step, point.learning_rate) for point in points)
    )
    attempts = [after.step for before, after in pairwise(points) if after.attempt != before.attempt]
    drawn = [
        ("Loss", lines_chart("Loss by step", losses, attempts=attempts)),
        ("Validation", lines_chart("Metrics of the validation images by step", shares)),
        ("Learning rate", lines_chart("Learning rate by step", [rates])),
    ]
    return [(title, picture) for title, picture in drawn if picture]


def comparison_charts(
    names: Sequence[str],
    points: Sequence[Sequence[CurvePoint]],
    evaluations: Sequence[Sequence[EvaluationRecord]],
) -> list[tuple[str, Markup]]:
    """The titled charts of several runs over each other; run n has the line style c<n+1>."""
    training = [
        Series(name, f"c{1 + at}", tuple((point.step, point.loss) for point in run))
        for at, (name, run) in enumerate(zip(names, points, strict=True))
    ]
    drawn = [("Training loss", lines_chart("Training loss by step", training))]
    metrics = dict.fromkeys(m for run in evaluations for record in run for m in record.metrics)
    for metric in list(metrics)[:_MOST_METRICS]:
        series = [
            Series(
                name,
                f"c{1 + at}",
                tuple((r.epoch, r.metrics[metric]) for r in run if metric in r.metrics),
                dots=True,
            )
            for at, (name, run) in enumerate(zip(names, evaluations, strict=True))
        ]
        picture = lines_chart(f"{metric} of the validation images by epoch", series, "epoch")
        drawn.append((f"Validation {metric}", picture))
    return [(title, picture) for title, picture in drawn if picture]


def _evaluated(
    evaluations: Sequence[EvaluationRecord], metric: str, label: str, style: str
) -> Series:
    known = ((r.step, r.metrics[metric]) for r in evaluations if metric in r.metrics)
    return Series(label, style, tuple(known), dots=True)
