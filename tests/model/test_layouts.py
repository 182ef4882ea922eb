"""The parameter table without MindSpore equals the networks' parameters."""

from __future__ import annotations

import pytest

from multigrain.model.gem import GeM
from multigrain.model.layouts import LAYOUTS, STEM_KERNELS, trunk_of, trunk_shapes
from multigrain.model.multigrain import MultiGrain
from multigrain.model.resnet import build_trunk
from multigrain.model.state import model_state

pytestmark = pytest.mark.mindspore

CASES = [(trunk, "imagenet") for trunk in LAYOUTS] + [("resnet18", "small"), ("resnet50", "small")]


@pytest.mark.parametrize(("trunk", "stem"), CASES)
def test_names_and_shapes_are_those_of_the_network(trunk: str, stem: str) -> None:
    state = model_state(MultiGrain(build_trunk(trunk, stem), GeM(), 7))
    expected = {name: array.shape for name, array in state.items() if name.startswith("trunk.")}
    assert trunk_shapes(trunk, stem) == expected
    assert state.keys() - expected.keys() == {"classifier.weight", "classifier.bias", "pool.p"}


@pytest.mark.parametrize("stem", STEM_KERNELS)
@pytest.mark.parametrize("trunk", LAYOUTS)
def test_a_trunk_is_identified_by_its_parameters(trunk: str, stem: str) -> None:
    shapes = trunk_shapes(trunk, stem) | {"classifier.weight": (3, 5)}
    assert trunk_of(shapes) == (trunk, stem)
    del shapes["trunk.bn1.gamma"]
    assert trunk_of(shapes) is None
