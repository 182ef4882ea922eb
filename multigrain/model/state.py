"""A model's weights as named NumPy arrays, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mindspore import Parameter

from multigrain.errors import ErrorKind, MultigrainError, shorten
from multigrain.model.multigrain import MultiGrain
from multigrain.model.parameters import assign

# Prefix of the parameters that THOR adds to a network; they are not part of the model.
CURVATURE_PREFIX = "curvature."

GEM_P = "pool.p"


def model_state(net: MultiGrain) -> dict[str, np.ndarray]:
    """Returns copies of all weights, BatchNorm statistics and GeM's p (learned or not) by name."""
    state = {name: p.asnumpy().copy() for name, p in model_parameters(net).items()}
    state[GEM_P] = np.asarray(net.pool.value, np.float32)
    return state


def load_model_state(net: MultiGrain, state: Mapping[str, np.ndarray]) -> None:
    """Loads ``state`` into the network; on error nothing is changed.

    Raises:
        MultigrainError: CHECKPOINT, naming what is missing, unexpected or has another shape.
    """
    parameters = model_parameters(net)
    names = set(parameters) | {GEM_P}
    missing, unexpected = sorted(names - set(state)), sorted(set(state) - names)
    problems = [f"missing: {shorten(missing)}"] if missing else []
    if unexpected:
        problems.append(f"unexpected: {shorten(unexpected)}")
    shapes = [
        f"{name} is {tuple(np.shape(state[name]))}, expected {tuple(parameters[name].shape)}"
        for name in sorted(set(parameters) & set(state))
        if tuple(np.shape(state[name])) != tuple(parameters[name].shape)
    ]
    if shapes:
        problems.append("wrong shape: " + "; ".join(shapes[:5]))
    if problems:
        raise MultigrainError(
            ErrorKind.CHECKPOINT,
            "the weights do not match the model (" + "; ".join(problems) + "); "
            "check trunk, stem and number of classes",
        )
    for name, parameter in parameters.items():
        assign(parameter, state[name])
    net.pool.set_exponent(float(state[GEM_P]))


def model_parameters(net: MultiGrain) -> dict[str, Parameter]:
    """Returns the network's parameters and running statistics by name, without THOR's."""
    return {p.name: p for p in net.get_parameters() if not p.name.startswith(CURVATURE_PREFIX)}
