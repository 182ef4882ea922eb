"""The graph files of a bundle: MindIR, ONNX and AIR, verified against the network."""

from __future__ import annotations

from pathlib import Path

import mindspore
import mindspore.onnx
import numpy as np
import onnx
from mindspore import Tensor, nn
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from multigrain.bundle.folder import FILE_MODE
from multigrain.bundle.reference import (
    MAX_DIFFERENCE,
    Reference,
    agreement,
    normalized,
    pattern_pixels,
)
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.export.pooling import fold_padding
from multigrain.images.parameters import Preprocessing

INPUT = "images"
OUTPUTS = ("embedding", "logits")
BATCH = "N"
# Operators whose shape argument might contain the batch size; Reshape is rewritten instead.
_SHAPED = {"Expand", "Tile", "ConstantOfShape", "Resize", "Upsample", "RandomNormal"}
# Batch sizes at which a graph's outputs are verified.
_BATCHES = (1, 5)

FloatArray = NDArray[np.float32]


def make_batch_dynamic(model: ModelProto) -> ModelProto:
    """Makes the batch dimension of an ONNX graph dynamic, and names its inputs and outputs.

    MindSpore writes the batch size of 1 into the input, the outputs and the constant shape of
    each Reshape. A leading 1 in those becomes 0, which in ONNX means "as in the input".

    Args:
        model: one input (1, 3, S, S), two outputs; modified in place.

    Returns:
        The same model, checked.

    Raises:
        MultigrainError: UNSUPPORTED, if the graph contains the batch size elsewhere.
    """
    graph = model.graph
    _rename(model, {graph.input[0].name: INPUT})
    _rename(model, {o.name: n for o, n in zip(graph.output, OUTPUTS, strict=True)})
    constants = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type == "Reshape":
            _make_reshape_dynamic(model, node, constants)
        elif node.op_type in _SHAPED:
            raise _unsupported(f"{node.op_type} may contain the batch size")
    # Shapes of intermediate values were inferred for a batch of 1.
    del graph.value_info[:]
    for value in (graph.input[0], *graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        dimension.ClearField("dim_value")
        dimension.dim_param = BATCH
    onnx.checker.check_model(model, full_check=True)
    return model


def _make_reshape_dynamic(
    model: ModelProto, node: NodeProto, constants: dict[str, NodeProto]
) -> None:
    name = node.input[1]
    tensors = [t for t in model.graph.initializer if t.name == name]
    if name in constants:
        tensors = [a.t for a in constants[name].attribute if a.name == "value"]
    if len(tensors) != 1:
        raise _unsupported("a Reshape computes its shape")
    shape = numpy_helper.to_array(tensors[0]).copy()
    if shape[0] not in (0, 1):
        raise _unsupported(f"a Reshape merges the batch with another dimension ({list(shape)})")
    shape[0] = 0
    tensors[0].CopyFrom(numpy_helper.from_array(shape, tensors[0].name))


def _rename(model: ModelProto, names: dict[str, str]) -> None:
    graph = model.graph
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)


def _unsupported(what: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.UNSUPPORTED,
        f"the ONNX graph's batch size cannot be made dynamic: {what}. Export mindir only",
    )


def reference(network: nn.Cell, preprocessing: Preprocessing) -> Reference:
    """Computes the network's reference outputs for a few generated images."""
    pixels = pattern_pixels(preprocessing.size, max(_BATCHES))
    embedding, logits = network(Tensor(normalized(pixels, preprocessing)))
    return Reference(pixels, embedding.asnumpy(), logits.asnumpy())


def write_mindir(network: nn.Cell, path: Path, images: FloatArray, expected: Reference) -> None:
    """Writes ``model.mindir`` with a dynamic batch dimension, and verifies it.

    Its outputs are, in order, embedding and logits.

    Raises:
        MultigrainError: INTERNAL, if the graph's outputs differ from the network's.
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
    """Writes ``model.onnx`` with a dynamic batch dimension, and verifies it with ONNX Runtime.

    Raises:
        MultigrainError: INTERNAL, if the graph's outputs differ from the network's; UNSUPPORTED,
            if the batch dimension cannot be made dynamic.
    """
    import onnxruntime

    fixed = path.with_name(f"fixed-{path.name}")
    mindspore.onnx.export(
        network, Tensor(np.zeros_like(images[:1])), file_name=str(fixed), input_names=[INPUT]
    )
    model = onnx.load(str(fixed))
    fixed.unlink()
    fold_padding(model)
    make_batch_dynamic(model)
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
    """Writes ``model.air`` for a batch of 1 (AIR has no dynamic batch). Ascend only.

    It is not verified, because MindSpore cannot run AIR files.
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
            f"the outputs of {name} differ from the network's: for {batch} images the normalized "
            f"embedding differs by {found.embedding:.2g} and the logits by {found.logits:.2g}, "
            f"more than {MAX_DIFFERENCE:g}. Nothing was exported; please report this",
        )
