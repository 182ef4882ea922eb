"""Every kind of model can be exported and computes the same."""

from __future__ import annotations

import math
import os
from pathlib import Path

import mindspore
import numpy as np
import onnxruntime
import pytest
from mindspore import Tensor

from multigrain.model.multigrain import build_model
from multigrain.specs.training import ModelSpec

pytestmark = pytest.mark.mindspore


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(trunk="resnet18", stem="small", learn_gem_p=True),
        ModelSpec(trunk="resnet18", gem_p=math.inf),
        pytest.param(ModelSpec(trunk="se_resnet50"), marks=pytest.mark.slow),
    ],
    ids=lambda spec: spec.trunk,
)
def test_onnx_graph_computes_the_same(spec: ModelSpec, tmp_path: Path) -> None:
    net = build_model(spec, 5)
    net.set_train(False)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((1, 3, 32, 32)).astype(np.float32)
    path = tmp_path / "model.onnx"
    mindspore.export(net, Tensor(images), file_name=str(path), file_format="ONNX")
    os.chmod(path, 0o600)  # MindSpore writes the file with mode 0400
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images})
    for expected, values in zip(net(Tensor(images)), found, strict=True):
        np.testing.assert_allclose(values, expected.asnumpy(), rtol=1e-3, atol=1e-5)
