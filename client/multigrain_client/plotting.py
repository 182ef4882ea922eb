"""Plots loss curves. Needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from multigrain_client.errors import InvalidRequest, MissingPackage
from multigrain_client.images import FloatArray
from multigrain_client.loss_point import LossPoint


@dataclass(frozen=True)
class Curve:
    """Loss points of one job in the order of steps."""

    name: str
    points: Sequence[LossPoint]


def plot_losses(
    curves: Sequence[Curve], path: str | os.PathLike[str] | BinaryIO, *, log: bool = False
) -> str:
    """Writes a PNG with the joint loss of every curve over the steps; for a single curve also its
    two terms, and learning rate and damping below.

    Args:
        curves: the curves.
        path: where to write it, or an open file.
        log: use a logarithmic loss axis.

    Returns:
        what to tell about names that no installed font can show; "" if there are none.

    Raises:
        MissingPackage: without matplotlib.
        InvalidRequest: if there is no point to plot.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from multigrain.fonts import plot_names
    except ImportError as error:
        raise MissingPackage("plotting needs matplotlib: pip install 'multigrain[plot]'") from error
    shown = [curve for curve in curves if curve.points]
    if not shown:
        raise InvalidRequest("there is no loss point to plot yet")
    # Without pyplot: no display, no global state.
    figure = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    single = shown[0] if len(shown) == 1 else None
    if single is not None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    else:
        top, bottom = figure.subplots(1, 1), None

    for number, curve in enumerate(shown):
        steps = [point.step for point in curve.points]
        loss = np.array([point.loss for point in curve.points], np.float32)
        color = f"C{number}"
        top.plot(steps, loss, color=color, alpha=0.3, linewidth=0.8)
        top.plot(steps, smooth(loss), color=color, linewidth=1.8, label=f"curve {number}")
    if single is not None:
        for number, (label, values) in enumerate(_terms(single)):
            steps = [point.step for point in single.points]
            top.plot(steps, smooth(values), color=f"C{number + 1}", linewidth=1.2, label=label)
        _rates(bottom, single)
    top.set_ylabel("loss")
    if log:
        top.set_yscale("log")
    top.grid(alpha=0.3)
    legend = top.legend(framealpha=0.9)
    names = plot_names([curve.name for curve in shown])
    # The legend also has the terms of a single curve.
    for text, name in zip(legend.get_texts(), names.shown, strict=False):
        # Set here: as a label, a name with "_" in front is left out; "$" would begin a formula.
        text.set_parse_math(False)
        text.set_text(f"{name}: loss")
        text.set_fontfamily(names.families)
    (bottom or top).set_xlabel("step")
    figure.savefig(path, format="png")
    return names.note


def smooth(values: FloatArray) -> FloatArray:
    """Running mean over about a fiftieth of the curve, without non-finite values."""
    width = max(len(values) // 50, 1)
    kernel = np.ones(width, np.float32)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0), kernel)[: len(values)]
    count = np.convolve(finite.astype(np.float32), kernel)[: len(values)]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: FloatArray = (total / count).astype(np.float32)
    return mean


def _terms(curve: Curve) -> list[tuple[str, FloatArray]]:
    return [
        (
            "classification term",
            np.array([point.classification_loss for point in curve.points], np.float32),
        ),
        ("instance term", np.array([point.instance_loss for point in curve.points], np.float32)),
    ]


def _rates(axes, curve: Curve) -> None:  # type: ignore[no-untyped-def]
    steps = [point.step for point in curve.points]
    axes.plot(steps, [point.learning_rate for point in curve.points], label="learning rate")
    if any(point.damping for point in curve.points):
        axes.plot(steps, [point.damping for point in curve.points], label="damping")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(framealpha=0.9)
