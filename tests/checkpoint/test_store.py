"""Checkpoints: atomic writes, verification, pruning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multigrain.checkpoint import store
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.specs.training import ModelSpec


def manifest(step: int, best: int = 0) -> CheckpointManifest:
    return CheckpointManifest(
        step=step,
        epoch=step // 10,
        model=ModelSpec(classes=3),
        labels=("a", "b", "c"),
        position={"best_step": best},
    )


def save(folder: Path, step: int, best: int = 0) -> Path:
    model = {"w": np.full((2, 3), step, np.float32)}
    store.save(folder, manifest(step, best), model, {"momentum": np.zeros(2, np.float32)})
    return folder / store.folder_name(step)


def test_saved_tensors_are_loaded_exactly(tmp_path: Path) -> None:
    model = {
        "w": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not contiguous
        "p": np.array(3.5, np.float32),  # a scalar
        "half": np.ones((2, 0), np.float16),
    }
    state = {"step": np.array([7], np.int64), "flag": np.array([True])}
    record = store.save(tmp_path, manifest(40), model, state)
    loaded = store.load(tmp_path / "step-00000040")
    for saved, read in ((model, loaded.model), (state, loaded.state)):
        assert saved.keys() == read.keys()
        for name in saved:
            assert read[name].dtype == saved[name].dtype
            np.testing.assert_array_equal(read[name], saved[name], strict=True)
    assert loaded.manifest.labels == ("a", "b", "c")
    assert (record.step, record.epoch, record.name) == (40, 4, "step-00000040")
    on_disk = sum(path.stat().st_size for path in (tmp_path / record.name).iterdir())
    assert record.bytes == on_disk


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5)
    store.save(tmp_path, manifest(5), {"w": np.zeros(1)}, {})
    assert store.load(tmp_path / "step-00000005").model["w"].shape == (1,)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_an_interrupted_write_leaves_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    half = tmp_path / ".tmp-step-00000002"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert store.latest_good(tmp_path) == tmp_path / "step-00000001"
    save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "shortened", "flipped"])
def test_a_damaged_checkpoint_is_skipped_and_reported(
    tmp_path: Path, name: str, damage: str
) -> None:
    save(tmp_path, 1)
    broken = save(tmp_path, 2) / name
    content = broken.read_bytes()
    if damage == "missing":
        broken.unlink()
    elif damage == "shortened":
        broken.write_bytes(content[:-1])
    else:
        broken.write_bytes(bytes([content[0] ^ 255]) + content[1:])
    told: list[str] = []
    assert store.latest_good(tmp_path, told.append) == tmp_path / "step-00000001"
    assert len(told) == 1
    assert "step-00000002" in told[0]
    assert name in told[0]
    with pytest.raises(MultigrainError) as caught:
        store.load(tmp_path / "step-00000002")
    assert caught.value.kind is ErrorKind.CHECKPOINT
    assert str(tmp_path) not in caught.value.message


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1) / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(MultigrainError, match="version 2"):
        store.load(tmp_path / "step-00000001")


def test_without_checkpoints_there_is_no_latest_one(tmp_path: Path) -> None:
    assert store.latest_good(tmp_path) is None
    assert store.latest_good(tmp_path / "nowhere") is None


def test_pruning_keeps_newest_best_and_protected_checkpoints(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5, 100_000_000):
        save(tmp_path, step, best=2)
    removed = store.prune(tmp_path, 2, protect=[3])
    assert removed == ["step-00000001", "step-00000004"]
    assert [step for step, _ in store.steps(tmp_path)] == [2, 3, 5, 100_000_000]


def test_pruning_never_removes_the_last_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert store.prune(tmp_path, 0) == []


def test_a_damaged_newest_checkpoint_does_not_affect_the_next_attempts(
    tmp_path: Path,
) -> None:
    save(tmp_path, 10, best=10)
    (save(tmp_path, 20, best=20) / "model.safetensors").write_bytes(b"")
    assert store.latest_good(tmp_path) == tmp_path / "step-00000010"
    save(tmp_path, 15, best=10)
    assert store.prune(tmp_path, keep=1) == []
    assert store.latest_good(tmp_path) == tmp_path / "step-00000015"
    assert store.resolve(tmp_path, "best") == tmp_path / "step-00000010"
    assert (tmp_path / "unused-step-00000020").is_dir()
    save(tmp_path, 20, best=10)
    assert store.latest_good(tmp_path) == tmp_path / "step-00000020"


@pytest.mark.parametrize("hard_links", [True, False])
def test_linked_weights_survive_the_checkpoints_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    if not hard_links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(95, "no")))
    folder = tmp_path / "checkpoints"
    linked = store.link_model(save(folder, 1), tmp_path / "reader")
    save(folder, 2)
    assert store.prune(folder, keep=1) == ["step-00000001"]
    found, model = store.load_model(linked)
    assert (found.step, model["w"][0, 0]) == (1, 1)
    with pytest.raises(MultigrainError, match="try again") as caught:
        store.link_model(folder / "step-00000001", tmp_path / "late")
    assert caught.value.kind is ErrorKind.NOT_FOUND


def test_a_checkpoint_is_found_by_last_best_or_step(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, best=min(step, 2))
    assert store.resolve(tmp_path, "last").name == "step-00000003"
    assert store.resolve(tmp_path, "best").name == "step-00000002"
    assert store.resolve(tmp_path, "1").name == "step-00000001"


@pytest.mark.parametrize(
    ("which", "kind"),
    [
        ("7", ErrorKind.NOT_FOUND),
        ("best", ErrorKind.NOT_FOUND),
        ("../1", ErrorKind.INVALID_FIELD),
        ("-1", ErrorKind.INVALID_FIELD),
    ],
)
def test_missing_and_invalid_checkpoints_are_different_errors(
    tmp_path: Path, which: str, kind: ErrorKind
) -> None:
    save(tmp_path, 1)
    with pytest.raises(MultigrainError) as caught:
        store.resolve(tmp_path, which)
    assert caught.value.kind is kind


def test_the_record_says_whether_the_checkpoint_is_the_best_so_far(tmp_path: Path) -> None:
    assert store.save(tmp_path, manifest(2, best=2), {}, {}).best
    assert not store.save(tmp_path, manifest(3, best=2), {}, {}).best


def test_last_of_a_job_without_checkpoint_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(MultigrainError) as caught:
        store.resolve(tmp_path, "last")
    assert caught.value.kind is ErrorKind.NOT_FOUND


def test_a_full_disk_is_a_storage_error_and_keeps_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multigrain.storage.os.fsync", full)
    with pytest.raises(MultigrainError, match="No space left") as caught:
        save(tmp_path, 2)
    assert caught.value.kind is ErrorKind.STORAGE
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_an_infinite_exponent_is_saved_and_loaded(tmp_path: Path) -> None:
    spec = ModelSpec(gem_p=float("inf"))
    store.save(tmp_path, CheckpointManifest(step=1, epoch=0, model=spec), {}, {})
    assert store.load(tmp_path / "step-00000001").manifest.model == spec
