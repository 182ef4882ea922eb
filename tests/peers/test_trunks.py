"""Forward passes against PyTorch, with weights files in PyTorch's names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mindspore import Tensor
from safetensors.numpy import save_file

from multigrain.weights.restore import restore
from tests.peers.figures import record
from tests.peers.names import BLOCKS, pytorch_shapes
from tests.peers.networks import TorchResNet
from tests.peers.seeded import images, seeded_state

pytestmark = pytest.mark.mindspore

TOLERANCE = 1e-4
CLASSES = 10


def reference(trunk: str, p: float) -> TorchResNet:
    net = TorchResNet(trunk, CLASSES, p)
    state = seeded_state(pytorch_shapes(trunk, CLASSES))
    net.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return net.eval()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("trunk", BLOCKS)
def test_every_trunk_computes_what_pytorch_computes(trunk: str, tmp_path: Path) -> None:
    shapes = pytorch_shapes(trunk, CLASSES)
    assert shapes == {n: tuple(v.shape) for n, v in reference(trunk, 1).state_dict().items()}
    save_file(seeded_state(shapes), tmp_path / "w.safetensors")
    for p, size in ((1.0, 64), (3.0, 97), (3.0, 224)):
        restored = restore(tmp_path / "w.safetensors", gem_p=p)
        assert restored.spec.trunk == trunk
        x = images(2, size)
        with torch.no_grad():
            expected = [t.numpy() for t in reference(trunk, p)(torch.from_numpy(x))]
        found = [t.asnumpy() for t in restored.network(Tensor(x))]
        assert expected[0].std(1).min() > 0  # no dead network
        errors = [relative(f, e) for f, e in zip(found, expected, strict=True)]
        record(f"forward {trunk} p={p:g} {size} px: embedding, logits", *errors)
        assert max(errors) <= TOLERANCE, (p, size, errors)
