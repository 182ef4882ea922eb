"""Making the batch dimension of an exported graph dynamic."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.export.graphs import make_batch_dynamic

pytestmark = pytest.mark.mindspore


def graph(shape: list[int], extra: str = "", constant: bool = True) -> ModelProto:
    """A graph like MindSpore's: batch 1 in inputs, outputs and the shape of a Reshape."""
    value = numpy_helper.from_array(np.array(shape, np.int64), "shape")
    matrix = numpy_helper.from_array(np.ones((12, 2), np.float32), "matrix")
    nodes = [
        helper.make_node("Reshape", ["x-0", "shape"], ["11-flat"]),
        helper.make_node("MatMul", ["11-flat", "matrix"], ["12"]),
    ]
    initializers = [matrix]
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["shape"], value=value))
    else:
        initializers.append(value)
    if extra:
        nodes.append(helper.make_node(extra, ["12", "shape"], ["13"]))
    info = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [info("x-0", TensorProto.FLOAT, [1, 3, 2, 2])],
            [info("11-flat", TensorProto.FLOAT, [1, 12]), info("12", TensorProto.FLOAT, [1, 2])],
            initializers,
        ),
        opset_imports=[helper.make_opsetid("", 11)],
        ir_version=4,
    )


@pytest.mark.parametrize("constant", [True, False])
def test_a_dynamic_batch_accepts_any_number_of_images(constant: bool) -> None:
    model = make_batch_dynamic(graph([1, 12], constant=constant))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == ["embedding", "logits"]
    for batch in (1, 5, 8):
        images = np.random.default_rng(batch).normal(size=(batch, 3, 2, 2)).astype(np.float32)
        embedding, logits = session.run(["embedding", "logits"], {"images": images})
        np.testing.assert_array_equal(embedding, images.reshape(batch, 12))
        np.testing.assert_allclose(logits, embedding @ np.ones((12, 2)), rtol=1e-5)


def test_a_reshape_across_the_batch_is_refused() -> None:
    with pytest.raises(MultigrainError, match="merges the batch") as caught:
        make_batch_dynamic(graph([3, 4]))
    assert caught.value.kind is ErrorKind.UNSUPPORTED


def test_an_operator_that_may_contain_the_batch_size_is_refused() -> None:
    with pytest.raises(MultigrainError, match="Expand") as caught:
        make_batch_dynamic(graph([1, 12], extra="Expand"))
    assert caught.value.kind is ErrorKind.UNSUPPORTED
