"""Initial weights of a training run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from multigrain.checkpoint import store
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.errors import MultigrainError
from multigrain.model.gem import GeM
from multigrain.model.multigrain import MultiGrain
from multigrain.model.resnet import build_trunk
from multigrain.model.state import load_model_state, model_state
from multigrain.specs.training import TrainingSpec
from multigrain.train.start import initial_state
from tests.peers.names import pytorch_shapes

pytestmark = pytest.mark.mindspore


def spec(path: Path, **model: object) -> TrainingSpec:
    return TrainingSpec.model_validate(
        {"initial_weights": str(path), "model": {"trunk": "resnet18", **model}}
    )


def network(classes: int) -> MultiGrain:
    net = MultiGrain(build_trunk("resnet18"), GeM(), classes)
    net.classifier.weight.set_data(net.classifier.weight + 0.5)
    return net


def torchvision(path: Path, classes: int = 3) -> Path:
    rng = np.random.default_rng(0)
    shapes = pytorch_shapes("resnet18", classes)
    save_file({n: np.asarray(rng.random(s), np.float32) for n, s in shapes.items()}, path)
    return path


def test_a_classifier_with_the_same_classes_is_loaded(tmp_path: Path) -> None:
    path = torchvision(tmp_path / "w.safetensors")
    net = network(3)
    start = initial_state(spec(path), net)
    load_model_state(net, start.state)
    loaded = model_state(net)
    assert 0 < loaded["classifier.weight"].max() < 1
    assert len(np.unique(loaded["classifier.weight"])) > 1000
    assert loaded["pool.p"] == 3.0  # the specification's; the source uses average pooling
    assert start.notes == ("starting from weights of a resnet18 with torchvision's names",)


def test_a_classifier_with_other_classes_is_dropped_and_logged(tmp_path: Path) -> None:
    path = torchvision(tmp_path / "w.safetensors", classes=5)
    net = network(3)
    start = initial_state(spec(path), net)
    load_model_state(net, start.state)
    loaded = model_state(net)
    np.testing.assert_array_equal(loaded["classifier.weight"], np.full((3, 512), 0.5, np.float32))
    assert len(np.unique(loaded["trunk.layer4.1.conv2.weight"])) > 1000
    assert "has 5 classes, this training run has 3" in start.notes[1]


def test_a_trunk_without_classifier_is_enough(tmp_path: Path) -> None:
    state = model_state(network(3))
    kept = {name: array for name, array in state.items() if name.startswith("trunk.")}
    save_file(kept, tmp_path / "w.safetensors")
    start = initial_state(spec(tmp_path / "w.safetensors"), network(4))
    assert start.state["classifier.weight"].shape == (4, 512)
    assert "is missing" in start.notes[1]


def test_a_learned_exponent_without_a_source_starts_at_the_specifications(
    tmp_path: Path,
) -> None:
    path = torchvision(tmp_path / "w.safetensors")
    start = initial_state(spec(path, learn_gem_p=True, gem_p=2.0), network(3))
    assert start.state["pool.p"] == 2.0


@pytest.mark.parametrize(
    ("model", "field"), [({"trunk": "resnet34"}, "trunk"), ({"stem": "small"}, "stem")]
)
def test_weights_of_another_network_are_an_invalid_field(
    tmp_path: Path, model: dict[str, str], field: str
) -> None:
    path = torchvision(tmp_path / "w.safetensors")
    with pytest.raises(MultigrainError, match="but initial_weights has") as caught:
        initial_state(spec(path, **model), network(3))
    assert caught.value.violations[0].field == f"spec.model.{field}"


def test_a_checkpoint_of_another_job_is_logged(tmp_path: Path) -> None:
    net = network(3)
    manifest = CheckpointManifest(
        step=7, epoch=1, model=spec(tmp_path).model, labels=("a", "b", "c"), job_id="job-1"
    )
    store.save(tmp_path, manifest, model_state(net), {"m": np.zeros(1)})
    start = initial_state(spec(tmp_path / "step-00000007"), net)
    assert start.notes == ("starting from the weights of job job-1, step 7",)
