"""Damaged files: refused by name, or the same answers. Never fewer items without a word."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from multigrain.index import filters, lance_store
from multigrain.index.exact_store import ExactStore
from multigrain.index.items import Changes
from multigrain.index.lance_store import LanceStore
from multigrain.index.store import IndexDamagedError, IndexStorageError, VectorStore
from tests.index.data import image_vectors
from tests.index.test_stores import FIELDS, SIZE, items

ENGINES = ("exact", "lance")


def open_store(engine: str, folder: Path, create: bool = False) -> VectorStore:
    if engine == "exact":
        return ExactStore(folder, SIZE, create=create)
    return LanceStore(folder, SIZE, FIELDS, create=create)


def answers(store: VectorStore) -> object:
    """Everything that a store can tell."""
    found = store.search(image_vectors(3, SIZE, seed=5), 10, effort="exact")
    return (
        store.count(),
        [
            (item, vector.tobytes())
            for part, rows in store.scan()
            for item, vector in zip(part, rows, strict=True)
        ],
        [[(hit.item, round(hit.similarity, 5)) for hit in hits] for hits in found],
    )


@pytest.fixture(scope="module", params=ENGINES)
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, object]:
    """A closed store with a history: its engine, folder and answers."""
    engine, folder = request.param, tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lance_store, "INDEXED_ROWS", 300)
        store = open_store(engine, folder, create=True)
        listed, vectors = items(600), image_vectors(600, SIZE)
        for start in range(0, 400, 100):
            store.add(listed[start : start + 100], vectors[start : start + 100])
        store.maintain()
        store.add(listed[400:], vectors[400:])
        store.delete(filters.Label("cat"))
        store.update([Changes(listed[1].id, path="moved")])
        before = answers(store)
        store.close()
    return engine, folder, before


def files_of(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def check_damaged(engine: str, folder: Path, before: object, what: str) -> bool:
    """Opens a damaged store: refused by name, or the same answers. Returns whether refused."""
    try:
        store = open_store(engine, folder)
    except IndexDamagedError as error:
        named = str(folder) in str(error)
    else:
        assert answers(store) == before, what
        store.close()
        return False
    assert named, what
    return True


@pytest.mark.parametrize("damage", ["cut", "flipped", "removed"])
def test_damage_of_any_file_is_noticed(
    filled: tuple[str, Path, object], damage: str, tmp_path: Path
) -> None:
    engine, folder, before = filled
    chosen, refused, tried = random.Random(0), 0, 0
    for name in files_of(folder):
        size = (folder / name).stat().st_size
        for place in range(1 if damage == "removed" else 6):
            copy = tmp_path / f"{tried}"
            shutil.copytree(folder, copy)
            path = copy / name
            if damage == "removed":
                path.unlink()
            elif damage == "cut":
                with path.open("r+b") as file:
                    file.truncate(size * place // 6)
            else:
                at = chosen.randrange(max(1, size - 16))
                with path.open("r+b") as file:
                    file.seek(at)
                    old = file.read(16)
                    file.seek(at)
                    file.write(bytes(byte ^ 0x55 for byte in old))
            tried += 1
            refused += check_damaged(engine, copy, before, f"{name} {damage} at {place}")
            shutil.rmtree(copy)
    assert refused


@pytest.mark.parametrize("engine", ENGINES)
def test_files_that_were_never_acknowledged_are_ignored(engine: str, tmp_path: Path) -> None:
    """A daemon that is killed between a commit and its acknowledgment leaves newer files."""
    listed, vectors = items(20), image_vectors(20, SIZE)
    store = open_store(engine, tmp_path, create=True)
    store.add(listed[:10], vectors[:10])
    kept = {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)}
    store.add(listed[10:], vectors[10:])
    store.close()
    if engine == "lance":
        (tmp_path / lance_store.FILES).write_bytes(kept[Path(lance_store.FILES)])
    store = open_store(engine, tmp_path)
    assert store.count() == 20
    store.add(listed[:1], vectors[:1])
    store.close()
    store = open_store(engine, tmp_path)
    assert store.count() == 20
    store.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_older_copy_is_refused(engine: str, tmp_path: Path) -> None:
    if engine == "exact":
        pytest.skip("its only file holds everything, and an old copy of it is a whole store")
    listed, vectors = items(20), image_vectors(20, SIZE)
    store = open_store(engine, tmp_path, create=True)
    store.add(listed[:10], vectors[:10])
    shutil.copytree(tmp_path / "items.lance", tmp_path / "old")
    store.add(listed[10:], vectors[10:])
    store.close()
    shutil.rmtree(tmp_path / "items.lance")
    (tmp_path / "old").rename(tmp_path / "items.lance")
    with pytest.raises(IndexDamagedError, match="missing"):
        open_store(engine, tmp_path)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_removed_version_that_was_interrupted_is_checked_by_content(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "exact":
        pytest.skip("it has no old versions")
    monkeypatch.setattr(lance_store, "_KEEP", lance_store.timedelta(0))
    store = LanceStore(tmp_path, SIZE, FIELDS, create=True)
    listed, vectors = items(40), image_vectors(40, SIZE)
    for start in range(0, 40, 10):
        store.add(listed[start : start + 10], vectors[start : start + 10])
    before = answers(store)
    # The files are gone and the list still has them, as after a crash.
    with monkeypatch.context() as patch:
        patch.setattr(LanceStore, "_present", lambda self: list(self._files.files))
        written = store._write_files
        patch.setattr(
            LanceStore, "_write_files", lambda self: written() if self._files.cleaning else None
        )
        store._clean()
    store.close()
    assert check_damaged(engine, tmp_path, before, "interrupted") is False
    assert check_damaged(engine, tmp_path, before, "opened twice") is False


def test_a_store_in_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises((IndexStorageError, IndexDamagedError), match="nowhere"):
        ExactStore(tmp_path / "nowhere", SIZE, create=True)
