"""Tensors of a PyTorch file, without running what is pickled in it."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError

SUFFIXES = (".pth", ".pt", ".bin")

# Where training programs keep the network's weights, besides the file itself.
_HOLDERS = ("model_state", "state_dict", "model")


class _Inert:
    """Stands for an object that is not wanted: takes any arguments and state, does nothing."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _empty(*_arguments: object) -> dict[object, object]:
    return {}


# The published MultiGrain program also stores its optimizer, as an object. PyTorch rightly
# refuses to build it; these names are therefore answered with things that can do nothing.
_STAND_INS = (
    (OrderedDict, "multigrain.modules.multioptim.MultiOptim"),
    (_Inert, "torch.optim.sgd.SGD"),
    (_Inert, "builtins.getattr"),
    (_Inert, "builtins.dict"),
    (_empty, "collections.defaultdict"),
)


def read_pytorch(path: Path) -> dict[str, NDArray[np.generic]]:
    """The named tensors of a ``.pth`` file, as they are.

    Only plain containers and tensors are read (``weights_only``): a file cannot run code.

    Raises:
        MultigrainError: CHECKPOINT if PyTorch is not installed, or the file is damaged, holds
            other objects, or no named tensors.
    """
    try:
        import torch
        from torch.serialization import safe_globals
    except ImportError as error:
        raise _unusable(
            path,
            "reading it needs PyTorch; install multigrain[torch] on the server, or convert the "
            "file to .safetensors elsewhere",
        ) from error
    try:
        with safe_globals(list(_STAND_INS)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unusable(
            path,
            "PyTorch refuses to read it as weights alone: it is damaged or holds other objects. "
            "Save its state_dict by itself, or convert it to .safetensors, where you trust it",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError) as error:
        raise _unusable(
            path,
            "it is not a whole PyTorch file of a state_dict; copy it once more, or save its "
            "state_dict by itself",
        ) from error
    tensors = {
        name: value
        for name, value in _holder(content, path).items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise _unusable(path, f"it holds no named tensors, nor under {', '.join(_HOLDERS)}")
    # bfloat16, which NumPy does not know, fits in float32.
    return {name: value.detach().float().numpy() for name, value in tensors.items()}


def _holder(content: object, path: Path) -> Mapping[object, object]:
    if not isinstance(content, Mapping):
        raise _unusable(path, "it holds no table of tensors")
    for name in _HOLDERS:
        inner = content.get(name)
        if isinstance(inner, Mapping):
            return inner
    return content


def _unusable(path: Path, what: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.CHECKPOINT, f"the weights in {path.name} cannot be used: {what}"
    )
