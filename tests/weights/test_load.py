"""Loading weights from checkpoints, bundles and files."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from multigrain.bundle.manifest import BundleManifest, Head
from multigrain.checkpoint import store
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.parameters import Preprocessing
from multigrain.model.layouts import trunk_shapes
from multigrain.specs.training import ModelSpec
from multigrain.storage import describe
from multigrain.weights.load import Weights, load_weights
from tests.peers.names import pytorch_shapes
from tests.unprivileged import unprivileged

MODEL = {"trunk.w": np.arange(6, dtype=np.float32).reshape(2, 3), "pool.p": np.array(3.0, "f4")}
SPEC = ModelSpec(trunk="resnet18", classes=2)


def check(model: object) -> None:
    assert isinstance(model, dict)
    assert model.keys() == MODEL.keys()
    for name, value in MODEL.items():
        np.testing.assert_array_equal(model[name], value)


def test_a_checkpoint_folder_has_weights_and_metadata(tmp_path: Path) -> None:
    manifest = CheckpointManifest(
        step=7, epoch=1, model=SPEC, labels=("a", "b"), metrics={"top1": 0.5}, job_id="j1"
    )
    store.save(tmp_path, manifest, MODEL, {"m": np.zeros(9)})
    weights = load_weights(tmp_path / "step-00000007")
    check(weights.model)
    assert weights.spec == SPEC
    assert weights.labels == ("a", "b")
    assert (weights.job_id, weights.step, weights.checkpoint) == ("j1", 7, "step-00000007")
    assert weights.metrics == {"top1": 0.5}


def test_a_bundle_folder_has_its_preprocessing(tmp_path: Path) -> None:
    preprocessing = Preprocessing(size=32, resize_short=40)
    head = Head(resolution=32, gem_p=3.0, preprocessing=preprocessing)
    save_file(MODEL, tmp_path / "weights.safetensors")
    manifest = BundleManifest(
        name="m",
        version=1,
        model=SPEC,
        embedding_size=512,
        labels=("a", "b"),
        heads=(head,),
        files={"weights.safetensors": describe(tmp_path / "weights.safetensors")},
    )
    (tmp_path / "model.json").write_text(manifest.model_dump_json())
    weights = load_weights(tmp_path)
    check(weights.model)
    assert [head.preprocessing for head in weights.heads] == [preprocessing]
    assert weights.spec == SPEC


def test_each_resolution_of_a_bundle_has_its_own_head() -> None:
    heads = tuple(
        Head(resolution=size, gem_p=p, preprocessing=Preprocessing.standard(size))
        for size, p in ((224, 3.0), (500, 4.0))
    )
    weights = Weights(MODEL, heads=heads)
    assert [weights.head(size) for size in (0, 224, 500, 800)] == [heads[0], *heads, None]
    assert Weights(MODEL).head(0) is None


def test_a_bundle_without_weights_is_refused(tmp_path: Path) -> None:
    head = Head(resolution=32, gem_p=3.0, preprocessing=Preprocessing.standard(32))
    manifest = BundleManifest(name="m", version=1, model=SPEC, embedding_size=512, heads=(head,))
    (tmp_path / "model.json").write_text(manifest.model_dump_json())
    with pytest.raises(MultigrainError, match="graphs only"):
        load_weights(tmp_path)


def test_weights_that_the_manifest_does_not_list_are_refused(tmp_path: Path) -> None:
    """They have no checksum, and may be a link to anything."""
    save_file(MODEL, tmp_path / "outside.safetensors")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/weights.safetensors").symlink_to(tmp_path / "outside.safetensors")
    head = Head(resolution=32, gem_p=3.0, preprocessing=Preprocessing.standard(32))
    manifest = BundleManifest(name="m", version=1, model=SPEC, embedding_size=512, heads=(head,))
    (tmp_path / "m/model.json").write_text(manifest.model_dump_json())
    with pytest.raises(MultigrainError, match=r"weights\.safetensors is not listed"):
        load_weights(tmp_path / "m")


def test_a_bundle_with_a_flipped_bit_in_its_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(MODEL, path)
    head = Head(resolution=32, gem_p=3.0, preprocessing=Preprocessing.standard(32))
    manifest = BundleManifest(
        name="m",
        version=1,
        model=SPEC,
        embedding_size=512,
        heads=(head,),
        files={path.name: describe(path)},
    )
    (tmp_path / "model.json").write_text(manifest.model_dump_json())
    check(load_weights(tmp_path).model)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of a number: the file is as long as before, and is read without an error
    path.write_bytes(data)
    with pytest.raises(MultigrainError, match=r"weights\.safetensors is not what was written"):
        load_weights(tmp_path)


def test_a_safetensors_file_has_weights_only(tmp_path: Path) -> None:
    save_file(MODEL, tmp_path / "w.safetensors")
    weights = load_weights(tmp_path / "w.safetensors")
    check(weights.model)
    assert weights.spec is None
    assert weights.labels == ()


@pytest.mark.mindspore
def test_a_mindspore_ckpt_is_read_without_its_optimizer_state(tmp_path: Path) -> None:
    mindspore = pytest.importorskip("mindspore")
    extra = {"moments.trunk.w": np.zeros((2, 3), np.float32), "global_step": np.array([3])}
    parameters = [
        {"name": name, "data": mindspore.Tensor(value)} for name, value in (MODEL | extra).items()
    ]
    mindspore.save_checkpoint(parameters, str(tmp_path / "w.ckpt"))
    check(load_weights(tmp_path / "w.ckpt").model)


def test_dtypes_unknown_to_numpy_are_reported(tmp_path: Path) -> None:
    header = b'{"trunk.w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(MultigrainError, match="of type BF16; convert them to float32"):
        load_weights(tmp_path / "w.safetensors")


def test_a_pytorch_file_without_pytorch_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"anything")
    with pytest.raises(MultigrainError, match=r"install multigrain\[torch\]") as caught:
        load_weights(tmp_path / "w.pth")
    assert caught.value.kind is ErrorKind.CHECKPOINT


def test_a_network_is_recognized_by_another_programs_names(tmp_path: Path) -> None:
    shapes = pytorch_shapes("resnet18", 4)
    state = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(state, tmp_path / "w.safetensors")
    weights = load_weights(tmp_path / "w.safetensors")
    assert weights.naming == "torchvision"
    assert weights.spec == ModelSpec(trunk="resnet18", classes=4, gem_p=1.0)
    assert weights.model.keys() == trunk_shapes("resnet18").keys() | {
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.mindspore
@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt", "w.pt", "w.txt"])
def test_a_file_that_has_no_weights_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02 something else")
    with pytest.raises(MultigrainError) as caught:
        load_weights(tmp_path / name)
    assert caught.value.kind is ErrorKind.CHECKPOINT
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("value", [np.float32("nan"), np.float32("inf"), np.float64(1e39)])
def test_non_finite_weights_are_refused_by_name(tmp_path: Path, value: float) -> None:
    state: dict[str, np.ndarray[Any, Any]] = {
        name: np.ones(shape, np.float32) for name, shape in pytorch_shapes("resnet18", 4).items()
    }
    state["conv1.weight"] = np.full(state["conv1.weight"].shape, value)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(MultigrainError, match=r"conv1\.weight has values that are not finite"):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pth"])
def test_a_file_without_permission_is_not_reported_as_damaged(open_path: Path, suffix: str) -> None:
    path = open_path / f"w{suffix}"
    save_file(MODEL, path)
    path.chmod(0)
    with unprivileged() as uid, pytest.raises(MultigrainError) as caught:
        load_weights(path)
    assert caught.value.kind is ErrorKind.CHECKPOINT
    assert f"w{suffix} cannot be read: Permission denied; let uid {uid} read it" in str(
        caught.value
    )


def test_a_folder_in_place_of_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").mkdir()
    with pytest.raises(MultigrainError, match="it is a folder; give the path of a file"):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.mindspore
def test_a_pytorch_file_with_mindspores_suffix_is_recognized(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "last.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(MultigrainError, match=r"it is a PyTorch file .* rename it to \.pth"):
        load_weights(tmp_path / "last.ckpt")


@pytest.mark.mindspore
def test_a_ckpt_of_the_modelzoos_scripts_is_refused_with_the_reason(tmp_path: Path) -> None:
    mindspore = pytest.importorskip("mindspore")
    # Its names resemble this package's, but its padding differs.
    names = ["conv1.weight", "bn1.gamma", "layer1.0.down_sample_layer.0.weight", "end_point.bias"]
    names += [f"moments.{name}" for name in names]
    tensors = [{"name": name, "data": mindspore.Tensor([1.0])} for name in names]
    mindspore.save_checkpoint(tensors, str(tmp_path / "resnet-42_5004.ckpt"))
    with pytest.raises(MultigrainError, match=r"it is a ResNet of MindSpore's ModelZoo .* train"):
        load_weights(tmp_path / "resnet-42_5004.ckpt")


def test_a_missing_path_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(MultigrainError) as caught:
        load_weights(tmp_path / "nothing.safetensors")
    assert caught.value.kind is ErrorKind.NOT_FOUND
