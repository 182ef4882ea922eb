"""Where a forward pass first went wrong."""

from __future__ import annotations

from typing import Any

import mindspore
from mindspore import Tensor, nn, ops


def first_broken_layer(model: nn.Cell, images: Tensor) -> str | None:
    """The first layer with an output that is not finite; None if there is none.

    Runs the network once more, outside any graph and in its present mode, BatchNorm's running
    values included: the caller puts them back.

    Returns:
        The layer's path in the network; "the images" where these are not finite themselves.
    """
    if not _finite(images):
        return "the images"
    broken: list[str] = []
    handles = []
    for name, cell in model.cells_and_names():
        # A cell's parts are done before the cell: what is found first is the innermost.
        if not name.endswith("_tap"):
            handles.append(cell.register_forward_hook(_hook(name or "the network", broken)))
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return broken[0] if broken else None


def _hook(name: str, broken: list[str]) -> Any:
    def check(_cell: nn.Cell, _inputs: Any, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        if not broken and not all(_finite(x) for x in tensors if isinstance(x, Tensor)):
            broken.append(name)

    return check


def _finite(x: Tensor) -> bool:
    return bool(ops.isfinite(ops.cast(x, mindspore.float32)).all().asnumpy())
