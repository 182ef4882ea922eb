"""Compiled graphs on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multigrain.train.graph_store import GraphStore

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def store(tmp_path: Path) -> GraphStore:
    return GraphStore(tmp_path / "graphs", 1000)


def file_of(store: GraphStore, key: str) -> Path:
    return store.folder / f"{key}.graph"


def used_at(store: GraphStore, key: str, seconds: int) -> None:
    os.utime(file_of(store, key), (seconds, seconds))


def test_a_graph_is_found_by_its_key(store: GraphStore) -> None:
    assert store.write(A, b"graph")
    assert GraphStore(store.folder, 1000).read(A) == b"graph"
    assert store.read(B) is None


def test_the_folder_and_its_files_are_private(store: GraphStore) -> None:
    store.write(A, b"graph")
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert file_of(store, A).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["changed", "shortened", "empty", "longer"])
def test_a_damaged_graph_is_dropped(store: GraphStore, damage: str) -> None:
    store.write(A, b"graph")
    path = file_of(store, A)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "changed": whole[:-1] + b"?",
            "shortened": whole[:-1],
            "empty": b"",
            "longer": whole + b"!",
        }[damage]
    )
    assert store.read(A) is None
    assert not path.exists()


def test_the_least_recently_used_graphs_are_removed(store: GraphStore) -> None:
    for number, key in enumerate((A, B)):
        store.write(key, b"x" * 300)
        used_at(store, key, 1000 + number)
    store.read(A)
    store.write(C, b"x" * 300)
    assert store.read(A) is not None
    assert store.read(B) is None
    assert store.read(C) is not None
    assert sum(path.stat().st_size for path in store.folder.iterdir()) <= 1000


def test_a_graph_larger_than_the_folder_may_be_is_not_written(store: GraphStore) -> None:
    store.write(A, b"graph")
    assert not store.write(B, b"x" * 1000)
    assert store.read(A) == b"graph"


def test_temporary_files_of_killed_writers_are_removed(store: GraphStore) -> None:
    left = store.folder / ".tmp-1-old"
    fresh = store.folder / ".tmp-2-new"
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (1000, 1000))
    store.write(A, b"graph")
    assert not left.exists()
    assert fresh.exists()


def test_nothing_is_read_from_a_folder_that_others_can_write_to(store: GraphStore) -> None:
    store.write(A, b"graph")
    store.folder.chmod(0o777)
    assert store.read(A) is None
    assert not store.write(B, b"graph")
    store.folder.chmod(0o700)
    assert store.read(A) == b"graph"


def test_a_folder_that_cannot_be_used_is_as_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = GraphStore(tmp_path / "file" / "graphs", 1000)
    assert store.read(A) is None
    assert not store.write(A, b"graph")
    store.drop(A)
