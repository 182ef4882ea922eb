"""The graph files of a bundle, each compared with the network before it counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mindspore
import mindspore.onnx
import numpy as np
import onnx
from mindspore import Tensor, nn
from numpy.typing import NDArray

from multigrain.bundle.folder import FILE_MODE
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate.search import normalised
from multigrain.export.dynamic_batch import INPUT, OUTPUTS, free_batch

FloatArray = NDArray[np.float32]

# Largest difference of a component of the normalised embedding, and of a logit relative to
# the largest one.
TOLERANCE = 1e-4
_BATCHES = (1, 5)


@dataclass(frozen=True)
class Outputs:
    """embedding (N, C), not normalised; logits (N, K)."""

    embedding: FloatArray
    logits: FloatArray


def reference(network: nn.Cell, images: FloatArray) -> Outputs:
    """What the network itself says."""
    embedding, logits = network(Tensor(images))
    return Outputs(embedding.asnumpy(), logits.asnumpy())


def comparison_images(size: int, count: int = max(_BATCHES)) -> FloatArray:
    """Normalised images for comparisons (count, 3, size, size): smooth, and different."""
    random = np.random.default_rng(0)
    coarse = random.normal(size=(count, 3, 4, 4))
    repeat = -(-size // 4)
    smooth = coarse.repeat(repeat, axis=2).repeat(repeat, axis=3)[:, :, :size, :size]
    images: FloatArray = (smooth + 0.3 * random.normal(size=smooth.shape)).astype(np.float32)
    return images


def write_mindir(network: nn.Cell, path: Path, images: FloatArray, expected: Outputs) -> None:
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
        _compare(path.name, Outputs(embedding.asnumpy(), logits.asnumpy()), expected, batch)


def write_onnx(network: nn.Cell, path: Path, images: FloatArray, expected: Outputs) -> None:
    """Writes ``model.onnx``, with a free batch dimension, and checks it with onnxruntime.

    Raises:
        MultigrainError: INTERNAL as above; UNSUPPORTED if the batch cannot be freed.
    """
    import onnxruntime

    fixed = path.with_name(f"fixed-{path.name}")
    mindspore.onnx.export(
        network, Tensor(np.zeros_like(images[:1])), file_name=str(fixed), input_names=[INPUT]
    )
    model = free_batch(onnx.load(str(fixed)))
    fixed.unlink()
    model.producer_name = "multigrain"
    path.write_bytes(model.SerializeToString())
    path.chmod(FILE_MODE)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for batch in _BATCHES:
        embedding, logits = session.run(list(OUTPUTS), {INPUT: images[:batch]})
        _compare(path.name, Outputs(embedding, logits), expected, batch)


def write_air(network: nn.Cell, path: Path, images: FloatArray) -> None:
    """Writes ``model.air`` for a batch of 1, the only form it has. Ascend only.

    Nothing here can run the file, so it is not compared with the network.
    """
    mindspore.export(
        network, Tensor(np.zeros_like(images[:1])), file_name=str(path), file_format="AIR"
    )
    path.chmod(FILE_MODE)


def _compare(name: str, got: Outputs, expected: Outputs, batch: int) -> None:
    embedding = np.abs(normalised(got.embedding) - normalised(expected.embedding[:batch])).max()
    scale = max(1.0, float(np.abs(expected.logits).max()))
    logits = np.abs(got.logits - expected.logits[:batch]).max() / scale
    # Written so that NaN fails.
    if not (embedding <= TOLERANCE and logits <= TOLERANCE):
        raise MultigrainError(
            ErrorKind.INTERNAL,
            f"{name} does not compute what the network does: for {batch} images the normalised "
            f"embedding differs by {embedding:.2g} and the logits by {logits:.2g}, more than "
            f"{TOLERANCE:g}. Nothing was exported; please report it",
        )
