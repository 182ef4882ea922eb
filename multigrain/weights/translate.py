"""Translating weights from another program's naming scheme, with every parameter checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError, shorten
from multigrain.model.layouts import LAYOUTS, Shape, trunk_of, trunk_shapes
from multigrain.weights.names import PUBLISHED, TIMM, TORCHVISION, Rule, Scheme, incompatibility

SCHEMES: tuple[Scheme, ...] = (TORCHVISION, TIMM, PUBLISHED)

# A prefix of all names: "module." of DataParallel, "model." of Lightning, "backbone.", ...
_WRAPPER = re.compile(r"[A-Za-z_]\w*\.")
_NATIVE_PREFIX = "trunk."
_CLASSIFIER = ("classifier.weight", "classifier.bias")
_GEM_P = "pool.p"


@dataclass(frozen=True)
class Translated:
    """A network's parameters under this package's names; complete except for the classifier.

    Args:
        model: float32 by name; ``pool.p`` only if the source has an exponent.
        trunk, stem: the network.
        naming: the scheme's name.
        gem_p: exponent; 1 if the source uses average pooling.
        classes: outputs of the classifier; 0 if the source has none.
    """

    model: dict[str, NDArray[np.generic]]
    trunk: str
    stem: str
    naming: str
    gem_p: float
    classes: int


def has_native_names(names: Iterable[str]) -> bool:
    """Returns whether the names are this package's."""
    return any(name.startswith(_NATIVE_PREFIX) for name in names)


def translate(state: Mapping[str, NDArray[np.generic]], file: str) -> Translated:
    """Renames and reshapes weights.

    Args:
        state: arrays under the names of a known scheme.
        file: name of the file, for messages.

    Raises:
        MultigrainError: CHECKPOINT, naming what is unknown, missing or has another shape.
    """
    given = sorted(state)
    state = _strip_wrappers(state)
    why = incompatibility(state)
    if why:
        raise _unusable(file, why)
    scheme = _scheme_of(state, given, file)
    model: dict[str, NDArray[np.generic]] = {}
    unknown = []
    for name, array in state.items():
        found = scheme.to_native(name)
        if found is not None:
            model[found[0]] = _converted(array, *found)
        elif not scheme.ignores(name):
            unknown.append(name)
    shapes: dict[str, Shape] = {name: array.shape for name, array in model.items()}
    named = trunk_of(shapes)
    if unknown or named is None:
        raise _unusable(file, _difference(scheme, shapes, unknown))
    if sum(name in model for name in _CLASSIFIER) == 1:
        raise _unusable(file, "its classifier lacks the weight or the bias")
    classifier = model.get(_CLASSIFIER[0])
    return Translated(
        model=model,
        trunk=named[0],
        stem=named[1],
        naming=scheme.name,
        gem_p=float(model[_GEM_P]) if _GEM_P in model else 1.0,
        classes=0 if classifier is None else int(classifier.shape[0]),
    )


def _strip_wrappers(
    state: Mapping[str, NDArray[np.generic]],
) -> Mapping[str, NDArray[np.generic]]:
    """Removes prefixes that all names share, and sorts by name."""
    state = dict(sorted(state.items()))
    while found := _WRAPPER.match(next(iter(state), "")):
        prefix = found.group()
        # "features." is part of the published scheme.
        if prefix == "features." or not all(name.startswith(prefix) for name in state):
            break
        state = {name.removeprefix(prefix): array for name, array in state.items()}
    return state


def _scheme_of(names: Iterable[str], given: list[str], file: str) -> Scheme:
    if not given:
        raise _unusable(file, "it has no tensors")
    names = list(names)
    hits = {s.name: sum(s.to_native(name) is not None for name in names) for s in SCHEMES}
    # The first of equals: timm's plain ResNets have torchvision's names.
    scheme = max(SCHEMES, key=lambda s: hits[s.name])
    if hits[scheme.name] == 0:
        known = ", ".join(s.name for s in SCHEMES)
        raise _unusable(
            file,
            f"its parameter names ({shorten(given)}) match no known scheme (multigrain's, {known})",
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
    """Describes the difference to the most similar trunk, in the source's names."""

    def distance(trunk: str) -> int:
        expected = trunk_shapes(trunk)
        # With shapes, because a wide or grouped ResNet has the same names.
        return len(set(expected.items()) ^ set(found.items()))

    def source(name: str) -> str:
        return scheme.to_source(name) or name

    found = {name: shape for name, shape in shapes.items() if name.startswith(_NATIVE_PREFIX)}
    trunk = min(LAYOUTS, key=distance)
    expected = trunk_shapes(trunk)
    unknown = unknown + [source(name) for name in found if name not in expected]
    missing = [source(name) for name in expected if name not in found]
    wrong = [
        f"{source(name)} is {found[name]}, expected {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    parts = [f"unknown: {shorten(unknown)}"] if unknown else []
    parts += [f"missing: {shorten(missing)}"] if missing else []
    parts += [f"wrong shape: {shorten(wrong)}"] if wrong else []
    return f"its names are {scheme.name}'s, but do not match a {trunk} ({'; '.join(parts)})"


def _unusable(file: str, what: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.CHECKPOINT,
        f"the weights in {file} cannot be used: {what}. Use those of {', '.join(LAYOUTS)}",
    )
