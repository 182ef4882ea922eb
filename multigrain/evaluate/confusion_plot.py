"""The confusion matrix as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_NAMED = 40  # classes up to which names fit beside the matrix
_COUNTED = 20  # classes up to which counts fit into its cells
_NAME_LENGTH = 24


def plot_confusion(counts: NDArray[np.int64], names: tuple[str, ...], path: Path) -> None:
    """Writes a PNG: row = true class, column = predicted class, colour = share of the row.

    Args:
        counts: (classes, outputs).
        names: of the outputs.
        path: the file.

    Raises:
        OSError: if it cannot be written.
    """
    # Here: most workers of a job draw nothing. Without pyplot: no display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = counts.shape
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.35 * max(rows, columns), 5.0, 14.0))
    figure = Figure(figsize=(side + 1.2, side), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="equal")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the class's images")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if max(rows, columns) <= _NAMED:
        labels = [_short(name) for name in names]
        axes.set_xticks(range(columns), labels[:columns], rotation=90, parse_math=False)
        axes.set_yticks(range(rows), labels[:rows], parse_math=False)
    if max(rows, columns) <= _COUNTED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[row, column] > 0.5 else "black",
            )
    total = int(counts.sum())
    right = int(np.trace(counts[:, :rows]))
    axes.set_title(f"{total} images, {right / max(total, 1):.2%} recognised")
    figure.savefig(path, format="png")


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"
