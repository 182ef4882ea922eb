"""``python -m multigrain.weights.hub NAME FILE``: fetches a library's pretrained weights.

timm and torchvision download them from their hubs and keep them in their own caches. The runner of
a job starts this in a process of its own: neither the daemon nor a worker imports PyTorch for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.specs.weights_reference import WeightsReference, parse_reference
from multigrain.storage import replace_file

#: Exit codes by which the runner tells the kind of an error.
MISSING_LIBRARY = 3
NOT_FETCHED = 4


def fetch(reference: WeightsReference, target: Path, *, pretrained: bool = True) -> None:
    """Writes a library's weights to a ``.safetensors`` file under the library's own names.

    Args:
        reference: the model of the library.
        target: the file.
        pretrained: False = random weights, without a download.

    Raises:
        MultigrainError: UNSUPPORTED, if the library is not installed; NOT_FOUND, if it has no such
            weights or they cannot be fetched; STORAGE, if the file cannot be written.
    """
    name = f"{reference.kind}:{reference.name}"
    try:
        state = _state(reference, pretrained=pretrained)
    except ImportError as error:
        raise MultigrainError(
            ErrorKind.UNSUPPORTED,
            f"{name} needs the library: pip install 'multigrain[hub]' on the server ({error})",
        ) from error
    except Exception as error:  # of a library and of the network below it
        reason = " ".join(str(error).split())[:300]
        raise MultigrainError(
            ErrorKind.NOT_FOUND,
            f"{name} cannot be fetched ({type(error).__name__}: {reason}): check that this machine "
            "reaches the hub, or give the path of a file that you have downloaded",
        ) from error
    tensors = {
        key: np.ascontiguousarray(value.detach().cpu().float().numpy())
        for key, value in state.items()
    }
    try:
        target.parent.mkdir(exist_ok=True)
        replace_file(target, save(tensors))
    except OSError as error:
        raise MultigrainError(
            ErrorKind.STORAGE, f"{target.name} cannot be written: {error.strerror}"
        ) from error


def _state(reference: WeightsReference, *, pretrained: bool) -> Mapping[str, Any]:
    if reference.kind == "timm":
        import timm

        model = timm.create_model(reference.name, pretrained=pretrained)
    else:
        import torchvision

        weights = "DEFAULT" if pretrained else None
        model = torchvision.models.get_model(reference.name, weights=weights)
    state: Mapping[str, Any] = model.state_dict()
    return state


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    reference = parse_reference(options.name, "name")
    if reference is None:
        parser.error(f"{options.name} is no name of a library's weights")
    try:
        fetch(reference, options.file)
    except MultigrainError as error:
        print(error.message, file=sys.stderr)
        return MISSING_LIBRARY if error.kind is ErrorKind.UNSUPPORTED else NOT_FETCHED
    return 0


if __name__ == "__main__":
    sys.exit(main())
