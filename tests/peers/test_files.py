"""Reading PyTorch files without executing code."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from mindspore import Tensor

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.weights.load import load_weights
from multigrain.weights.restore import restore
from tests.peers.names import pytorch_shapes
from tests.peers.networks import TorchResNet
from tests.peers.seeded import images, seeded_state

pytestmark = pytest.mark.mindspore

CLASSES = 4


def published_state() -> OrderedDict[str, torch.Tensor]:
    shapes = pytorch_shapes("resnet50", CLASSES, prefix="features.", head="classifier")
    state = {name: torch.from_numpy(array) for name, array in seeded_state(shapes).items()}
    return OrderedDict(state | {"pool.p": torch.tensor(3.0)})


def torchvision_state() -> dict[str, torch.Tensor]:
    state = seeded_state(pytorch_shapes("resnet18", CLASSES))
    return {name: torch.from_numpy(array) for name, array in state.items()}


class MultiOptim(OrderedDict[str, Any]):
    """A container of optimizers, pickled under the published program's class name."""

    def state_dict(self) -> dict[str, Any]:
        return {}


def published_content(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Everything that the published program saves, including a bound method of the optimizer."""
    for name in ("multigrain.modules", "multigrain.modules.multioptim"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(MultiOptim, "__module__", "multigrain.modules.multioptim")
    sys.modules["multigrain.modules.multioptim"].MultiOptim = MultiOptim  # type: ignore[attr-defined]
    weight = torch.nn.Parameter(torch.ones(3))
    beta = torch.nn.Parameter(torch.tensor(1.2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    optimizers = MultiOptim(backbone=optimizer, margin_beta=torch.optim.SGD([beta], lr=0.1))
    optimizers.base_lr = {("backbone", 0): 0.1}  # type: ignore[attr-defined]
    return {
        "model_state": published_state(),
        "optimizer_state": optimizers.state_dict,
        "extra": {"beta": beta},
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_a_published_checkpoint_computes_what_pytorch_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    """In the legacy format of PyTorch 1.0, which is not a zip archive."""
    with monkeypatch.context() as patch:
        content = published_content(patch)
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    restored = restore(tmp_path / "w.pth")
    assert restored.spec.trunk == "resnet50"
    assert restored.spec.gem_p == 3.0
    assert restored.weights.naming == "MultiGrain (published)"
    net = TorchResNet("resnet50", CLASSES, p=3.0).eval()
    state = published_state()
    del state["pool.p"]
    net.load_state_dict(
        {n.replace("features.", "").replace("classifier.", "fc."): v for n, v in state.items()}
    )
    x = images(2, 64)
    with torch.no_grad():
        expected = net(torch.from_numpy(x))[1].numpy()
    found = restored.network(Tensor(x))[1].asnumpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("holder", ["", "state_dict", "model"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_state_dicts_are_found_under_any_known_key(
    tmp_path: Path, holder: str, dtype: torch.dtype
) -> None:
    state = {f"module.{name}": value.to(dtype) for name, value in torchvision_state().items()}
    torch.save({holder: state, "epoch": 3} if holder else state, tmp_path / "w.pt")
    weights = load_weights(tmp_path / "w.pt")
    assert weights.spec is not None
    assert (weights.spec.trunk, weights.spec.classes) == ("resnet18", CLASSES)
    expected = torchvision_state()["conv1.weight"].to(dtype).float().numpy()
    np.testing.assert_array_equal(weights.model["trunk.conv1.weight"], expected)


class Evil:
    """A malicious object: a function call when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cannot_execute_code(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "mark"
    content = {"model_state": torchvision_state(), "extra": Evil(mark)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(MultigrainError, match="holds other objects") as caught:
        load_weights(tmp_path / "w.pth")
    assert caught.value.kind is ErrorKind.CHECKPOINT
    assert not mark.exists()
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(MultigrainError):
        load_weights(tmp_path / "w.pth")
    assert not mark.exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision_state(), tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    for broken in (b"", whole[:1000], whole[: len(whole) // 2], b"not at all"):
        (tmp_path / "w.pth").write_bytes(broken)
        with pytest.raises(MultigrainError) as caught:
            load_weights(tmp_path / "w.pth")
        assert caught.value.kind is ErrorKind.CHECKPOINT
    for nothing in ([1, 2], {"epoch": 3}, torch.ones(3)):
        torch.save(nothing, tmp_path / "w.pth")
        with pytest.raises(MultigrainError, match="holds no"):
            load_weights(tmp_path / "w.pth")
