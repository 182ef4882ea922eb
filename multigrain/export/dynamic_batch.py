"""Makes the batch dimension of an exported ONNX graph free, and gives it its names."""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from multigrain.errors import ErrorKind, MultigrainError

INPUT = "images"
OUTPUTS = ("embedding", "logits")
BATCH = "N"
# Operators whose shape argument might hold the batch size; Reshape is rewritten instead.
_SHAPED = {"Expand", "Tile", "ConstantOfShape", "Resize", "Upsample", "RandomNormal"}


def free_batch(model: ModelProto) -> ModelProto:
    """Rewrites a graph that was exported for a batch of 1.

    MindSpore writes the batch size into the input, the outputs and the constant shape of each
    Reshape. There a leading 1 becomes 0, which in ONNX means "as in the input".

    Args:
        model: one input (1, 3, S, S), two outputs; changed in place.

    Returns:
        The same model, checked.

    Raises:
        MultigrainError: UNSUPPORTED if the graph holds the batch size elsewhere.
    """
    graph = model.graph
    _rename(model, {graph.input[0].name: INPUT})
    _rename(model, {o.name: n for o, n in zip(graph.output, OUTPUTS, strict=True)})
    constants = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type == "Reshape":
            _free_reshape(model, node, constants)
        elif node.op_type in _SHAPED:
            raise _unsupported(f"{node.op_type} may hold the batch size")
    # Shapes of intermediate values were inferred for a batch of 1.
    del graph.value_info[:]
    for value in (graph.input[0], *graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        dimension.ClearField("dim_value")
        dimension.dim_param = BATCH
    onnx.checker.check_model(model, full_check=True)
    return model


def _free_reshape(model: ModelProto, node: NodeProto, constants: dict[str, NodeProto]) -> None:
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
        f"the ONNX graph cannot be made to take any number of images: {what}. Export mindir only",
    )
