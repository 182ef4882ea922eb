"""Weights of a folder that somebody else can write: links out of the roots, and hostile files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from multigrain.bundle.manifest import BundleManifest, Head
from multigrain.checkpoint import store
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.parameters import Preprocessing
from multigrain.specs.training import ModelSpec
from multigrain.storage import describe
from multigrain.weights.load import load_weights
from multigrain.whitening import read_whitening
from tests.hostile_files import KINDS, put, within_seconds

MODEL = {"trunk.w": np.arange(6, dtype=np.float32).reshape(2, 3), "pool.p": np.array(3.0, "f4")}
SPEC = ModelSpec(trunk="resnet18", classes=2)


def _file(folder: Path) -> Path:
    save_file(MODEL, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def _checkpoint(folder: Path) -> Path:
    manifest = CheckpointManifest(step=7, epoch=1, model=SPEC, labels=("a", "b"))
    store.save(folder, manifest, MODEL, {"m": np.zeros(9)})
    return folder / "step-00000007"


def _bundle(folder: Path) -> Path:
    head = Head(resolution=32, gem_p=3.0, preprocessing=Preprocessing(size=32, resize_short=40))
    weights = _file(folder)
    manifest = BundleManifest(
        name="m",
        version=1,
        model=SPEC,
        embedding_size=512,
        labels=("a", "b"),
        heads=(head,),
        files={weights.name: describe(weights)},
    )
    (folder / "model.json").write_text(manifest.model_dump_json())
    return folder


SOURCES: tuple[tuple[Callable[[Path], Path], str], ...] = (
    (_file, ""),
    (_checkpoint, "manifest.json"),
    (_checkpoint, "model.safetensors"),
    (_bundle, "model.json"),
    (_bundle, "weights.safetensors"),
)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    return inside, outside


@pytest.mark.parametrize(("make", "name"), SOURCES)
def test_weights_outside_the_roots_are_not_loaded(
    folders: tuple[Path, Path], make: Callable[[Path], Path], name: str
) -> None:
    """Exported and downloaded, they would be those of somebody else."""
    inside, outside = folders
    path = make(inside)
    file = path / name if name else path
    assert load_weights(path, [inside]).model.keys() == MODEL.keys()
    file.rename(outside / file.name)
    file.symlink_to(outside / file.name)
    with pytest.raises(MultigrainError) as caught:
        load_weights(path, [inside])
    assert caught.value.kind is ErrorKind.CHECKPOINT
    assert str(outside) not in caught.value.message
    (outside / file.name).rename(outside / "kept")
    with pytest.raises(MultigrainError) as missing:
        load_weights(path, [inside])
    # Whether there is such a file outside is not shown.
    assert missing.value.message == caught.value.message
    (outside / "kept").rename(outside / file.name)
    assert load_weights(path).model.keys() == MODEL.keys()  # without a daemon
    assert load_weights(path, [inside, outside]).model.keys() == MODEL.keys()


@pytest.mark.parametrize("restricted", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("make", "name"), SOURCES)
def test_hostile_files_are_refused(
    folders: tuple[Path, Path],
    make: Callable[[Path], Path],
    name: str,
    kind: str,
    restricted: bool,
) -> None:
    inside, _ = folders
    path = make(inside)
    put(path / name if name else path, kind)
    with pytest.raises(MultigrainError) as caught:
        within_seconds(lambda: load_weights(path, [inside] if restricted else None))
    assert caught.value.kind in (ErrorKind.CHECKPOINT, ErrorKind.NOT_FOUND)


@pytest.mark.parametrize("suffix", [".ckpt", ".pth"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "socket", "huge"])
def test_hostile_files_of_other_formats_are_refused_before_their_readers(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    put(path, kind)
    with pytest.raises(MultigrainError, match=r"not a regular file|more than 8 GiB"):
        within_seconds(lambda: load_weights(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_newest_checkpoint_is_skipped(tmp_path: Path, kind: str) -> None:
    for step in (1, 2, 3):
        store.save(
            tmp_path, CheckpointManifest(step=step, epoch=1, model=SPEC), MODEL, {"m": np.zeros(9)}
        )
    put(tmp_path / "step-00000003" / "manifest.json", kind)
    put(tmp_path / "step-00000002" / "state.safetensors", kind)
    found = within_seconds(lambda: store.latest_good(tmp_path))
    assert found == tmp_path / "step-00000001"
    assert within_seconds(lambda: store.best_step(tmp_path)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_whitening_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "whitening.safetensors"
    put(path, kind)
    with pytest.raises(MultigrainError):
        within_seconds(lambda: read_whitening(path, 4))
