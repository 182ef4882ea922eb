"""Puts values in a parameter."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor, ops


def assign(parameter: Parameter, values: np.ndarray) -> None:
    """Copies ``values`` in the parameter's own memory, as float32.

    ``Parameter.set_data`` gives the parameter new memory instead, and graphs that are compiled
    already (MindSpore 2.8.0) go on reading and writing the old one, without a word.
    """
    ops.assign(parameter, Tensor(np.array(values, np.float32, order="C")))
