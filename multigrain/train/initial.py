"""The weights that a training starts from, where it is given some."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multigrain.checkpoint.weights import Weights, load_weights
from multigrain.errors import MultigrainError
from multigrain.model.multigrain import MultiGrain
from multigrain.model.state import GEM_P, model_state
from multigrain.spec.training import ModelSpec, TrainingSpec

_CLASSIFIER = ("classifier.weight", "classifier.bias")


@dataclass(frozen=True)
class InitialWeights:
    """Weights for ``load_model_state``, and what a user should know of them."""

    state: dict[str, NDArray[np.generic]]
    notes: tuple[str, ...]


def initial_state(spec: TrainingSpec, model: MultiGrain) -> InitialWeights:
    """The weights of ``initial_weights``, fitted to the network that is trained.

    A classifier of another number of classes cannot be used: the network keeps its own, as it
    was initialised. The pooling exponent is the specification's, unless it is learned and the
    source has one.

    Raises:
        MultigrainError: NOT_FOUND or CHECKPOINT for the file; INVALID_FIELD where the
            specification asks for another trunk or stem.
    """
    weights = load_weights(Path(spec.initial_weights))
    if weights.spec is not None:
        _check(weights.spec, spec.model)
    state = dict(weights.model)
    notes = [_origin(weights)]
    outputs = [state[name].shape[:1] for name in _CLASSIFIER if name in state]
    if outputs != [(model.classes,)] * len(_CLASSIFIER):
        own = model_state(model)
        state |= {name: own[name] for name in _CLASSIFIER}
        had = f"has {outputs[0][0]} classes" if outputs and outputs[0] else "is missing"
        notes.append(
            f"the classifier of the initial weights {had}, this training has {model.classes}: "
            "it starts from random weights; everything else is taken"
        )
    if not spec.model.learn_gem_p or GEM_P not in state:
        state[GEM_P] = np.asarray(spec.model.gem_p, np.float32)
    return InitialWeights(state, tuple(notes))


def _check(found: ModelSpec, asked: ModelSpec) -> None:
    for name in ("trunk", "stem"):
        if getattr(found, name) != getattr(asked, name):
            raise MultigrainError.field(
                f"spec.model.{name}",
                f"is {getattr(asked, name)!r}, but initial_weights holds {getattr(found, name)!r}; "
                "give that, or other weights",
            )


def _origin(weights: Weights) -> str:
    if weights.naming and weights.spec is not None:
        names = f"{weights.naming}'s names"
        return f"starting from weights of a {weights.spec.trunk} under {names}"
    if weights.job_id:
        return f"starting from the weights of job {weights.job_id}, step {weights.step}"
    return "starting from the given weights"
