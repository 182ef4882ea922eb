"""Reading tensors of a PyTorch file without executing pickled code."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError

SUFFIXES = (".pth", ".pt", ".bin")

# Keys under which training programs store the network's weights.
_STATE_DICT_KEYS = ("model_state", "state_dict", "model")


class _Stub:
    """Replaces a pickled object that is not needed: accepts any arguments and state."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _empty(*_arguments: object) -> dict[object, object]:
    return {}


# The published MultiGrain checkpoints also hold a pickled optimizer, which ``weights_only``
# refuses. These names are replaced by stubs that do nothing.
_STUBS = (
    (OrderedDict, "multigrain.modules.multioptim.MultiOptim"),
    (_Stub, "torch.optim.sgd.SGD"),
    (_Stub, "builtins.getattr"),
    (_Stub, "builtins.dict"),
    (_empty, "collections.defaultdict"),
)


def read_pytorch(path: Path, file: BinaryIO) -> dict[str, NDArray[np.generic]]:
    """Reads the named tensors of a ``.pth`` file.

    Only plain containers and tensors are read (``weights_only``): a file cannot execute code.

    Args:
        path: of the file, for messages.
        file: it, opened.

    Raises:
        MultigrainError: CHECKPOINT, if PyTorch is not installed, or the file is damaged, holds
            other objects, or has no named tensors.
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
        with safe_globals(list(_STUBS)):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unusable(
            path,
            "PyTorch cannot read it with weights_only: it is damaged or holds other objects. "
            "Save its state_dict alone, or, if you trust the file, convert it to .safetensors",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError) as error:
        raise _unusable(
            path,
            "it is not a complete PyTorch file of a state_dict; copy it again, or save the "
            "state_dict alone",
        ) from error
    tensors = {
        name: value
        for name, value in _state_dict(content, path).items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not tensors:
        keys = ", ".join(_STATE_DICT_KEYS)
        raise _unusable(path, f"it holds no named tensors, neither directly nor under {keys}")
    # NumPy has no bfloat16; float32 represents it exactly.
    return {name: value.detach().float().numpy() for name, value in tensors.items()}


def _state_dict(content: object, path: Path) -> Mapping[object, object]:
    if not isinstance(content, Mapping):
        raise _unusable(path, "it holds no state_dict")
    for name in _STATE_DICT_KEYS:
        inner = content.get(name)
        if isinstance(inner, Mapping):
            return inner
    return content


def _unusable(path: Path, what: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.CHECKPOINT, f"the weights in {path.name} cannot be used: {what}"
    )
