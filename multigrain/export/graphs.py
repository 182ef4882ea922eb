"""The graph files of a bundle, each compared with the network before it counts."""

from __future__ import annotations

from pathlib import Path

import mindspore
import mindspore.onnx
import numpy as np
import onnx
from mindspore import Tensor, nn
from numpy.typing import NDArray

from multigrain.bundle.agreement import MAX_DIFFERENCE, agreement
from multigrain.bundle.folder import FILE_MODE
from multigrain.bundle.reference import Reference, normalized, pattern_pixels
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.export.dynamic_batch import INPUT, OUTPUTS, free_batch
from multigrain.export.pooling import fold_borders
from multigrain.images.parameters import Preprocessing

FloatArray = NDArray[np.float32]

_BATCHES = (1, 5)


def reference(network: nn.Cell, preprocessing: Preprocessing) -> Reference:
    """What the network itself says of a few pictures, prepared as those that are served."""
    pixels = pattern_pixels(preprocessing.size, max(_BATCHES))
    embedding, logits = network(Tensor(normalized(pixels, preprocessing)))
    return Reference(pixels, embedding.asnumpy(), logits.asnumpy())


def write_mindir(network: nn.Cell, path: Path, images: FloatArray, expected: Reference) -> None:
    """Writes ``model.mindir``, with a free batch dimension, and checks it.

    Its outputs are, in order, embedding and logits.

    Raises:
        MultigrainError: INTERNAL if the graph does not compute what the network does.
    """
    size = images.shape[-1]
    mindspore.export(
        network,
        Tensor(shape=[None, 3, size, size], dtype=mindspore.float32),
        file_name=str(path),
        file_format="MINDIR",
    )
    path.chmod(FILE_MODE)
    graph = nn.GraphCell(mindspore.load(str(path)))
    for batch in _BATCHES:
        embedding, logits = graph(Tensor(images[:batch]))
        _compare(path.name, embedding.asnumpy(), logits.asnumpy(), expected)


def write_onnx(network: nn.Cell, path: Path, images: FloatArray, expected: Reference) -> None:
    """Writes ``model.onnx``, with a free batch dimension, and checks it with onnxruntime.

    Raises:
        MultigrainError: INTERNAL as above; UNSUPPORTED if the batch cannot be freed.
    """
    import onnxruntime

    fixed = path.with_name(f"fixed-{path.name}")
    mindspore.onnx.export(
        network, Tensor(np.zeros_like(images[:1])), file_name=str(fixed), input_names=[INPUT]
    )
    model = onnx.load(str(fixed))
    fixed.unlink()
    fold_borders(model)
    free_batch(model)
    model.producer_name = "multigrain"
    path.write_bytes(model.SerializeToString())
    path.chmod(FILE_MODE)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for batch in _BATCHES:
        embedding, logits = session.run(list(OUTPUTS), {INPUT: images[:batch]})
        _compare(path.name, embedding, logits, expected)


def write_air(network: nn.Cell, path: Path, images: FloatArray) -> None:
    """Writes ``model.air`` for a batch of 1, the only form it has. Ascend only.

    Nothing here can run the file, so it is not compared with the network.
    """
    mindspore.export(
        network, Tensor(np.zeros_like(images[:1])), file_name=str(path), file_format="AIR"
    )
    path.chmod(FILE_MODE)


def _compare(name: str, embedding: FloatArray, logits: FloatArray, expected: Reference) -> None:
    batch = len(embedding)
    found = agreement(embedding, logits, expected)
    if not found.suffices("f32"):
        raise MultigrainError(
            ErrorKind.INTERNAL,
            f"{name} does not compute what the network does: for {batch} images the normalised "
            f"embedding differs by {found.embedding:.2g} and the logits by {found.logits:.2g}, "
            f"more than {MAX_DIFFERENCE:g}. Nothing was exported; please report it",
        )
