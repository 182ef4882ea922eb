"""Parses safetensors files that may be damaged or hostile."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from multigrain.text import printable

_MAX_REASON = 200


def parse_tensors(data: bytes) -> dict[str, NDArray[np.generic]]:
    """The arrays of a safetensors file, by name.

    The library checks that the header is within the file, and that the arrays are within it, do
    not overlap and have the sizes of their shapes and types.

    Raises:
        ValueError: if it is damaged, or has types that NumPy has not; with what is wrong.
    """
    try:
        tensors: dict[str, NDArray[np.generic]] = load(data)
    except KeyError as error:
        # bfloat16 and the 8-bit floats.
        kind = printable(str(error.args[0])[:_MAX_REASON])
        raise ValueError(f"it has tensors of type {kind}; convert them to float32") from error
    except (SafetensorError, ValueError, TypeError, OverflowError) as error:
        reason = printable(str(error)[:_MAX_REASON])
        raise ValueError(f"it is not a whole safetensors file of NumPy types ({reason})") from error
    return tensors
