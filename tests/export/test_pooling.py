"""Rewriting max pooling of zero borders as padded max pooling."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

from multigrain.export.pooling import fold_padding


def graph(*, before: str = "Relu", border: float = 0.0, axis: int = 3) -> ModelProto:
    """As MindSpore exports ``multigrain.model.resnet.MaxPool``."""
    nodes, last = [helper.make_node(before, ["x"], ["map"])], "map"
    for number, (join, along) in enumerate(((2, 2), (axis, axis))):
        part, value, zero, made = (f"{word}{number}" for word in ("part", "value", "zero", "made"))
        constant = helper.make_tensor(value, TensorProto.INT64, [], [int(border)])
        nodes += [
            helper.make_node("Slice", [last, "begin", "one", f"axis{along}", "one"], [part]),
            helper.make_node("Constant", [], [value], value=constant),
            helper.make_node("Cast", [value], [f"{value}f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [part, f"{value}f"], [zero]),
            helper.make_node("Concat", [zero, last, zero], [made], axis=join),
        ]
        last = made
    nodes.append(
        helper.make_node(
            "MaxPool", [last], ["y"], kernel_shape=[3, 3], strides=[2, 2], auto_pad="VALID"
        )
    )
    constants = {"begin": 0, "one": 1, "axis2": 2, "axis3": 3}
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "pool",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, None, None])],
            [
                helper.make_tensor(name, TensorProto.INT64, [1], [v])
                for name, v in constants.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 11)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return model


def run(model: ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


def test_zero_borders_become_padding_with_equal_outputs() -> None:
    model = graph()
    x = np.random.default_rng(0).normal(size=(1, 2, 8, 8)).astype(np.float32)
    expected = run(model, x)
    assert fold_padding(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu", "MaxPool"]
    assert len(model.graph.initializer) == 0
    np.testing.assert_array_equal(run(model, x), expected)


@pytest.mark.parametrize(
    "changes", [{"before": "Neg"}, {"border": 1.0}, {"axis": 2}], ids=["sign", "border", "axis"]
)
def test_other_graphs_are_unchanged(changes: dict[str, object]) -> None:
    """Negative maps, other borders, rows only."""
    model = graph(**changes)  # type: ignore[arg-type]
    before = model.SerializeToString()
    assert fold_padding(model) == 0
    assert model.SerializeToString() == before
