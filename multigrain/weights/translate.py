"""Weights under another program's names -> ours, every one accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.model.layouts import LAYOUTS, Shape, trunk_of, trunk_shapes
from multigrain.weights.names import PUBLISHED, TIMM, TORCHVISION, Rule, Scheme, incompatibility

SCHEMES: tuple[Scheme, ...] = (TORCHVISION, TIMM, PUBLISHED)

# A word before every name: "module." of DataParallel, "model." of Lightning, "backbone.", ...
_WRAPPER = re.compile(r"[A-Za-z_]\w*\.")
_OWN = "trunk."
_CLASSIFIER = ("classifier.weight", "classifier.bias")
_GEM_P = "pool.p"
_SHOWN = 5


@dataclass(frozen=True)
class Translated:
    """A network's parameters under our names, complete but perhaps for the classifier.

    Args:
        model: float32, by our names; ``pool.p`` only where the source has an exponent.
        trunk, stem: the network that these are the parameters of.
        naming: the scheme's name.
        gem_p: exponent; 1 where the source pools by the average.
        classes: outputs of the classifier; 0 if the source has none.
    """

    model: dict[str, NDArray[np.generic]]
    trunk: str
    stem: str
    naming: str
    gem_p: float
    classes: int


def has_native_names(names: Iterable[str]) -> bool:
    """Whether the names are those of this package."""
    return any(name.startswith(_OWN) for name in names)


def translate(state: Mapping[str, NDArray[np.generic]], file: str) -> Translated:
    """Renames and reshapes ``state``.

    Args:
        state: arrays under one of the known schemes' names.
        file: name of the file, for messages.
    Raises:
        MultigrainError: CHECKPOINT, naming what is unknown, missing or of another shape.
    """
    given = sorted(state)
    state = _unwrapped(state)
    why = incompatibility(state)
    if why:
        raise _unusable(file, why)
    scheme = _scheme_of(state, given, file)
    model: dict[str, NDArray[np.generic]] = {}
    unknown = []
    for name, array in state.items():
        found = scheme.ours(name)
        if found is not None:
            model[found[0]] = _converted(array, *found)
        elif not scheme.ignores(name):
            unknown.append(name)
    shapes: dict[str, Shape] = {name: array.shape for name, array in model.items()}
    named = trunk_of(shapes)
    if unknown or named is None:
        raise _unusable(file, _difference(scheme, shapes, unknown))
    if sum(name in model for name in _CLASSIFIER) == 1:
        raise _unusable(file, "its classifier has no bias, or no weight")
    classifier = model.get(_CLASSIFIER[0])
    return Translated(
        model=model,
        trunk=named[0],
        stem=named[1],
        naming=scheme.name,
        gem_p=float(model[_GEM_P]) if _GEM_P in model else 1.0,
        classes=0 if classifier is None else int(classifier.shape[0]),
    )


def _unwrapped(state: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.generic]]:
    """Without words that stand before every name, and in order, for messages to be the same."""
    state = dict(sorted(state.items()))
    # The trunk's word in the published names is the scheme's.
    while found := _WRAPPER.match(next(iter(state), "")):
        word = found.group()
        if word == "features." or not all(name.startswith(word) for name in state):
            break
        state = {name.removeprefix(word): array for name, array in state.items()}
    return state


def _scheme_of(names: Iterable[str], given: list[str], file: str) -> Scheme:
    if not given:
        raise _unusable(file, "it holds no tensors")
    names = list(names)
    hits = {s.name: sum(s.ours(name) is not None for name in names) for s in SCHEMES}
    # The first of equals: a plain ResNet of timm's is called torchvision's, which it is.
    scheme = max(SCHEMES, key=lambda s: hits[s.name])
    if hits[scheme.name] == 0:
        known = ", ".join(s.name for s in SCHEMES)
        raise _unusable(
            file, f"its names ({_list(given)}) are none of the known ones (ours, {known})"
        )
    return scheme


def _converted(array: NDArray[np.generic], name: str, rule: Rule) -> NDArray[np.generic]:
    values: NDArray[np.generic] = np.asarray(array, np.float32)
    if rule.dense and values.ndim == 4 and values.shape[2:] == (1, 1):
        values = values[:, :, 0, 0]
    if name == _GEM_P and values.size == 1:
        values = values.reshape(())
    return np.ascontiguousarray(values).reshape(values.shape)


def _difference(scheme: Scheme, shapes: dict[str, Shape], unknown: list[str]) -> str:
    """What keeps the weights from being those of the nearest trunk, in the source's names."""

    def distance(trunk: str) -> int:
        expected = trunk_shapes(trunk)
        # Shapes count as well: a wide or grouped ResNet has the names of ours.
        return len(set(expected.items()) ^ set(found.items()))

    def theirs(name: str) -> str:
        # A trunk that this program does not have is named as we name it.
        return scheme.source(name) or name

    found = {name: shape for name, shape in shapes.items() if name.startswith(_OWN)}
    trunk = min(LAYOUTS, key=distance)
    expected = trunk_shapes(trunk)
    unknown = unknown + [theirs(name) for name in found if name not in expected]
    missing = [theirs(name) for name in expected if name not in found]
    wrong = [
        f"{theirs(name)} is {found[name]}, expected {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    parts = [f"unknown: {_list(unknown)}"] if unknown else []
    parts += [f"missing: {_list(missing)}"] if missing else []
    parts += [f"of another shape: {_list(wrong)}"] if wrong else []
    return f"they are {scheme.name}'s names, but not all of a {trunk} ({'; '.join(parts)})"


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _unusable(file: str, what: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.CHECKPOINT,
        f"the weights in {file} cannot be used: {what}. Use those of {', '.join(LAYOUTS)}",
    )
