"""Forward passes against numbers that PyTorch computed (tests/peers makes them)."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor

from multigrain.model.gem import GeM
from multigrain.model.multigrain import MultiGrain
from multigrain.model.resnet import build_trunk
from multigrain.model.state import load_model_state
from multigrain.weights.translate import translate
from tests.peers.golden import CASES, CLASSES, IMAGES, SIZE, Golden, read
from tests.peers.names import pytorch_shapes
from tests.peers.seeded import images, seeded_state

pytestmark = pytest.mark.mindspore

TOLERANCE = 1e-4


def test_the_file_has_every_case() -> None:
    assert [(golden.trunk, golden.gem_p) for golden in read()] == list(CASES)


@pytest.mark.parametrize("golden", read(), ids=lambda g: f"{g.trunk}-p{g.gem_p:g}")
def test_the_network_computes_what_pytorch_computed(golden: Golden) -> None:
    net = MultiGrain(build_trunk(golden.trunk), GeM(golden.gem_p), CLASSES)
    weights = translate(seeded_state(pytorch_shapes(golden.trunk, CLASSES)), "seeded")
    load_model_state(net, weights.model | {"pool.p": np.float32(golden.gem_p)})
    net.set_train(False)
    embedding, logits = (t.asnumpy() for t in net(Tensor(images(IMAGES, SIZE))))
    found = Golden.of(golden.trunk, golden.gem_p, embedding, logits)
    for part in ("first", "last", "norm", "logits"):
        expected = np.asarray(getattr(golden, part))
        largest = np.abs(expected).max()
        np.testing.assert_allclose(
            np.asarray(getattr(found, part)), expected, rtol=0, atol=TOLERANCE * largest
        )
