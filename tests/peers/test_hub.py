"""Weights of torchvision's and timm's own networks, without a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.backends.cuda.is_built():
    # torchvision's wheel is built for the torch with CUDA. With another one its own operators are
    # missing, which no ResNet uses, and it cannot be imported before this one is declared.
    torchvision_operators = torch.library.Library("torchvision", "FRAGMENT")
    torchvision_operators.define("nms(Tensor dets, Tensor scores, float threshold) -> Tensor")
    torchvision_operators.define("qnms(Tensor dets, Tensor scores, float threshold) -> Tensor")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

from multigrain.errors import ErrorKind, MultigrainError  # noqa: E402
from multigrain.specs.weights_reference import parse_reference  # noqa: E402
from multigrain.weights import hub  # noqa: E402
from multigrain.weights.load import load_weights  # noqa: E402

NAMES = [
    *(f"torchvision:resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"timm:resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "timm:seresnet50",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_a_librarys_network_has_a_place(name: str, tmp_path: Path) -> None:
    reference = parse_reference(name, "field")
    assert reference is not None
    torch.manual_seed(0)
    hub.fetch(reference, tmp_path / reference.file_name, pretrained=False)
    weights = load_weights(tmp_path / reference.file_name)
    assert weights.spec is not None
    assert (weights.spec.trunk, weights.spec.stem) == (reference.trunk, "imagenet")
    assert (weights.spec.classes, weights.spec.gem_p) == (1000, 1.0)
    torch.manual_seed(0)
    library, _, model = name.partition(":")
    made = (
        timm.create_model(model)
        if library == "timm"
        else torchvision.models.get_model(model, weights=None)
    )
    state = made.state_dict()
    learned = [key for key in state if not key.endswith("num_batches_tracked")]
    assert len(weights.model) == len(learned)
    total = sum(float(state[key].double().sum()) for key in learned)
    found = sum(float(array.astype(np.float64).sum()) for array in weights.model.values())
    assert found == pytest.approx(total, rel=1e-9)
    np.testing.assert_array_equal(
        weights.model["trunk.layer4.1.conv2.weight"], state["layer4.1.conv2.weight"].numpy()
    )


@pytest.mark.parametrize("name", ["timm:resnet18.no_such_weights", "timm:resnet50.no_such"])
def test_weights_that_do_not_exist_are_named(name: str, tmp_path: Path) -> None:
    reference = parse_reference(name, "field")
    assert reference is not None
    with pytest.raises(MultigrainError, match="cannot be fetched") as caught:
        hub.fetch(reference, tmp_path / "w.safetensors")
    assert caught.value.kind is ErrorKind.NOT_FOUND
    assert name in caught.value.message
    assert not (tmp_path / "w.safetensors").exists()


def test_a_hub_that_is_not_reached_is_an_error_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_arguments: object, **_options: object) -> object:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    reference = parse_reference("torchvision:resnet18", "field")
    assert reference is not None
    with pytest.raises(MultigrainError, match="give the path of a file") as caught:
        hub.fetch(reference, tmp_path / "w.safetensors")
    assert "Network is unreachable" in caught.value.message
