"""Finding the first non-finite number (NaN or infinity) of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from mindspore import Tensor


@dataclass(frozen=True)
class NonFinite:
    """The first non-finite quantity of a step, in the order of computation.

    Attributes:
        what: "loss", "gradient", "A" or "G" (a curvature factor), or "inverse" (of a factor).
        where: the layer or the parameter; of a loss, its term.
        layer: the first layer with a non-finite output in the forward pass, if known.
    """

    what: Literal["loss", "gradient", "A", "G", "inverse"]
    where: str
    layer: str = ""

    @property
    def scaled(self) -> bool:
        """Whether the quantity depends on the loss scale: only the backward pass does."""
        return self.what in ("gradient", "G")

    def __str__(self) -> str:
        name = f"factor {self.what}" if self.what in ("A", "G") else self.what
        text = f"the {self.where}" if self.what == "loss" else f"the {name} of {self.where}"
        return f"{text} (forward pass: {self.layer})" if self.layer else text


def first_non_finite_gradient(gradients: Sequence[tuple[str, Tensor]]) -> NonFinite:
    """Finds the first non-finite gradient; if only the global norm overflows, the largest one.

    Args:
        gradients: names and values in the order of the backward pass. The sum of their squares
            is non-finite.
    """
    largest, found = -1.0, ""
    for name, gradient in gradients:
        size = float(np.abs(gradient.asnumpy()).max(initial=0.0))
        if not np.isfinite(size):
            return NonFinite("gradient", name)
        if size > largest:
            largest, found = size, name
    return NonFinite("gradient", found)


def first_non_finite_factor(names: Sequence[str], traces: np.ndarray) -> NonFinite | None:
    """Finds the first non-finite curvature factor in the order of computation, if any.

    The factors A come with the forward pass, G with the backward pass.

    Args:
        names: the layers' names, in the order of the network.
        traces: (2, L), tr(A) and tr(G) of each layer. A mean of outer products with a finite
            trace is finite itself: ``|F_ij| <= sqrt(F_ii F_jj)``.
    """
    for name, trace in zip(names, traces[0], strict=True):
        if not np.isfinite(trace):
            return NonFinite("A", name)
    for name, trace in zip(reversed(names), traces[1][::-1], strict=True):
        if not np.isfinite(trace):
            return NonFinite("G", name)
    return None
