"""Building a network from stored weights, for evaluation and export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import Roots
from multigrain.images.parameters import Preprocessing
from multigrain.model.layouts import trunk_of
from multigrain.specs.training import ModelSpec, TrunkName
from multigrain.weights.load import Weights, load_weights

if TYPE_CHECKING:
    from multigrain.model.multigrain import MultiGrain


_CLASSIFIER = "classifier.weight"
_STEM = "trunk.conv1.weight"
_GEM_P = "pool.p"


@dataclass(frozen=True)
class RestoredModel:
    """A network with stored weights.

    Args:
        network: the network, in evaluation mode.
        spec: its specification; ``classes`` is its number of outputs, ``gem_p`` the exponent in
            use.
        state: its parameters by name, with the exponent in use.
        weights: the source.
    """

    network: MultiGrain
    spec: ModelSpec
    state: dict[str, NDArray[np.generic]]
    weights: Weights

    def preprocessing(self, resolution: int) -> Preprocessing:
        """Returns the preprocessing for a resolution; 0 = the training resolution."""
        head = self.weights.head(resolution)
        if head is not None:
            return head.preprocessing
        return Preprocessing.standard(resolution or self.spec.image_size, self.spec.center_crop)

    def with_exponent(self, gem_p: float) -> RestoredModel:
        """Builds another network with the same weights and another GeM exponent."""
        return _build(self.weights, self.spec, self.state, gem_p)


def restore(
    path: Path,
    *,
    trunk: str = "",
    gem_p: float = 0.0,
    resolution: int = 0,
    roots: Roots = None,
) -> RestoredModel:
    """Loads weights and builds their network.

    Args:
        path: a checkpoint or bundle folder, or a weights file (see ``load_weights``).
        trunk: trunk of a weights file; empty to detect it from names and shapes.
        gem_p: exponent to use instead of the stored one; 0 = the stored one.
        resolution: selects the bundle's head whose exponent is the stored one.
        roots: folders that the files must be in.

    Raises:
        MultigrainError: NOT_FOUND or CHECKPOINT for the weights; INVALID_FIELD "spec.trunk", if a
            weights file has another trunk, or one that cannot be detected.
    """
    weights = load_weights(path, roots)
    state = dict(weights.model)
    spec = weights.spec or _detect_spec(state, trunk)
    if weights.naming and trunk not in ("", spec.trunk):
        raise MultigrainError.field(
            "spec.trunk", f"is {trunk!r}, but {path.name} has a {spec.trunk}; leave it empty"
        )
    stored = float(state.get(_GEM_P, np.float32(spec.gem_p)))
    if (head := weights.head(resolution)) is not None:
        stored = head.gem_p
    return _build(weights, spec, state, gem_p or stored)


def _build(
    weights: Weights, spec: ModelSpec, state: dict[str, NDArray[np.generic]], p: float
) -> RestoredModel:
    state = {**state, _GEM_P: np.array(p, np.float32)}
    # From here on p is a constant, even if it was learned.
    spec = spec.model_copy(update={"gem_p": p, "learn_gem_p": False, "classes": _outputs(state)})
    # Imported here, because only this function needs MindSpore.
    from multigrain.model.multigrain import build_model
    from multigrain.model.state import load_model_state

    network = build_model(spec, spec.classes)
    load_model_state(network, state)
    network.set_train(False)
    return RestoredModel(network, spec, state, weights)


def _detect_spec(state: dict[str, NDArray[np.generic]], trunk: str) -> ModelSpec:
    known = get_args(TrunkName)
    if not trunk:
        detected = trunk_of({name: array.shape for name, array in state.items()})
        if detected is None:
            raise MultigrainError.field(
                "spec.trunk",
                "the weights' names and shapes match no known network: give one of "
                f"{', '.join(known)}",
            )
        return ModelSpec.model_validate({"trunk": detected[0], "stem": detected[1]})
    if trunk not in known:
        raise MultigrainError.field(
            "spec.trunk", f"{trunk!r} is unknown: give one of {', '.join(known)}"
        )
    stem = state.get(_STEM)
    small = stem is not None and stem.shape[-1] == 3
    return ModelSpec.model_validate({"trunk": trunk, "stem": "small" if small else "imagenet"})


def _outputs(state: dict[str, NDArray[np.generic]]) -> int:
    classifier = state.get(_CLASSIFIER)
    if classifier is None or classifier.ndim != 2:
        raise MultigrainError(
            ErrorKind.CHECKPOINT,
            f"the weights have no {_CLASSIFIER}, which evaluation and export need: start a "
            "training job from them (initial_weights) and use its checkpoint",
        )
    return int(classifier.shape[0])
