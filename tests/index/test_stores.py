"""What every engine does, tested with the same tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from multigrain.index import filters, lance_store
from multigrain.index.exact_store import ExactStore
from multigrain.index.filters import Filter, matches
from multigrain.index.items import Changes, Field, Item, changed_item
from multigrain.index.lance_store import LanceStore
from multigrain.index.store import VectorStore
from tests.index.data import image_vectors

SIZE = 32
FIELDS = (
    Field("kind", "string"),
    Field("year", "int"),
    Field("price", "float"),
    Field("sold", "bool"),
)
Open = Callable[[bool], VectorStore]


@pytest.fixture(params=["exact", "lance"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    def open_exact(create: bool) -> VectorStore:
        return ExactStore(tmp_path, SIZE, create=create)

    def open_lance(create: bool) -> VectorStore:
        return LanceStore(tmp_path, SIZE, FIELDS, create=create)

    return open_exact if request.param == "exact" else open_lance


@pytest.fixture
def store(open_store: Open) -> Iterator[VectorStore]:
    store = open_store(True)
    yield store
    store.close()


def items(count: int, *, seed: int = 0) -> list[Item]:
    chosen = random.Random(seed)
    return [
        Item(
            id=f"item {i} 'é\\\"\u4e2d",
            sha256=f"{i:064x}",
            path=f"holidays/{chosen.choice('abc')}/{i}.jpg",
            labels=tuple(chosen.sample(["cat", "dog", "it's"], chosen.randint(0, 3))),
            tags=tuple(chosen.sample(["red", "blue"], chosen.randint(0, 2))),
            attributes={
                name: value
                for name, value in {
                    "kind": chosen.choice(["a", "b", "O'Hara", "%", "_"]),
                    "year": chosen.randint(1990, 2030),
                    "price": chosen.uniform(-5.0, 5.0),
                    "sold": chosen.random() < 0.5,
                }.items()
                if chosen.random() < 0.7
            },
            added=1.5 + i,
        )
        for i in range(count)
    ]


class Model:
    """What a store should hold and find, in a dictionary."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[Item, NDArray[np.float32]]] = {}

    def add(self, added: list[Item], vectors: NDArray[np.float32]) -> None:
        for item, vector in zip(added, vectors, strict=True):
            self.held[item.id] = item, vector

    def similarities(self, query: NDArray[np.float32], chosen: Filter | None) -> dict[str, float]:
        return {
            id: float(query @ vector)
            for id, (item, vector) in self.held.items()
            if chosen is None or matches(chosen, item)
        }

    def check(self, store: VectorStore) -> None:
        """Compares all that a store holds."""
        assert store.count() == len(self.held)
        scanned: list[str] = []
        for part, vectors in store.scan(rows=7):
            for item, vector in zip(part, vectors, strict=True):
                expected, numbers = self.held[item.id]
                assert item == expected
                np.testing.assert_array_equal(vector, numbers)
                scanned.append(item.id)
        assert scanned == sorted(self.held)


def check_search(
    store: VectorStore, model: Model, queries: NDArray[np.float32], k: int, chosen: Filter | None
) -> None:
    for effort in ("fast", "balanced", "exact"):
        found = store.search(queries, k, chosen=chosen, effort=effort, with_vectors=True)
        assert len(found) == len(queries)
        for query, hits in zip(queries, found, strict=True):
            expected = model.similarities(query, chosen)
            assert len({hit.item.id for hit in hits}) == len(hits) == min(k, len(expected))
            best = sorted(expected.values(), reverse=True)[: len(hits)]
            np.testing.assert_allclose([hit.similarity for hit in hits], best, atol=1e-5)
            for hit in hits:
                assert hit.similarity == pytest.approx(expected[hit.item.id], abs=1e-5)
                assert hit.item == model.held[hit.item.id][0]
                np.testing.assert_array_equal(hit.vector, model.held[hit.item.id][1])


FILTERS: list[Filter] = [
    filters.Label("cat"),
    filters.Label("it's"),
    filters.Label("' OR TRUE --"),
    filters.Tag("red"),
    filters.PathPrefix("holidays/a/"),
    filters.PathPrefix("%"),
    filters.Ids(("item 3 'é\\\"\u4e2d", "nobody")),
    filters.Ids(()),
    filters.Equals("kind", ("O'Hara", "_")),
    filters.Equals("kind", ()),
    filters.Equals("sold", (True,)),
    filters.Equals("year", (2000, 2001, 2002)),
    filters.Range("year", 2000, None),
    filters.Range("price", -1.5, 2.5),
    filters.Range("kind", "a", "b"),
    filters.Not(filters.Range("price", None, 0.0)),
    filters.Not(filters.Equals("sold", (False,))),
    filters.Not(filters.Not(filters.Label("dog"))),
    filters.All(()),
    filters.Any(()),
    filters.All((filters.Label("cat"), filters.Not(filters.Tag("blue")))),
    filters.Any((filters.Label("dog"), filters.Range("year", 2025, 2030))),
]


def test_an_empty_store_finds_nothing(open_store: Open) -> None:
    store = open_store(True)
    Model().check(store)
    assert store.search(image_vectors(2, SIZE), 5) == [[], []]
    assert store.get(["a"]) == ([], None)
    assert store.delete(filters.All(())) == 0
    assert store.update([Changes("a", path="b")]) == ["a"]
    store.close()
    store = open_store(False)
    Model().check(store)
    store.close()


@pytest.mark.parametrize("chosen", FILTERS, ids=repr)
def test_filters_choose_the_same_items(store: VectorStore, chosen: Filter) -> None:
    model = Model()
    added, vectors = items(60), image_vectors(60, SIZE)
    store.add(added, vectors)
    model.add(added, vectors)
    expected = {item.id for item in added if matches(chosen, item)}
    assert store.count(chosen) == len(expected)
    assert {item.id for part, _ in store.scan(chosen) for item in part} == expected
    check_search(store, model, image_vectors(3, SIZE, seed=1), 10, chosen)
    assert store.delete(chosen) == len(expected)
    for id in expected:
        del model.held[id]
    model.check(store)


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_changes(open_store: Open, seed: int) -> None:
    chosen = random.Random(seed)
    store, model = open_store(True), Model()
    pool, vectors = items(200, seed=seed), image_vectors(200, SIZE, seed=seed)
    version = store.version
    for step in range(25):
        operation = chosen.choice(["add", "add", "update", "delete", "maintain", "open"])
        rows = chosen.sample(range(200), chosen.randint(1, 40))
        ids = [pool[row].id for row in rows]
        if operation == "add":
            moved = np.roll(vectors, step, axis=0)[rows]
            store.add([pool[row] for row in rows], moved)
            model.add([pool[row] for row in rows], moved)
        elif operation == "update":
            changes = [
                Changes(
                    id,
                    labels=("new",),
                    path=chosen.choice([None, "elsewhere"]),
                    attributes={"year": chosen.choice([None, 7])},
                )
                for id in ids
            ]
            assert store.update(changes) == [id for id in ids if id not in model.held]
            for change in changes:
                if change.id in model.held:
                    item, vector = model.held[change.id]
                    model.held[change.id] = changed_item(item, change), vector
        elif operation == "delete":
            expected = [id for id in ids if id in model.held]
            assert store.delete(filters.Ids(tuple(ids))) == len(expected)
            for id in expected:
                del model.held[id]
        elif operation == "maintain":
            store.maintain()
        else:
            store.close()
            store = open_store(False)
        assert store.version >= version
        version = store.version
        model.check(store)
    check_search(store, model, image_vectors(4, SIZE, seed=9), 10, None)
    check_search(store, model, image_vectors(1, SIZE, seed=9), 1000, None)
    found, numbers = store.get([pool[3].id, "nobody", pool[1].id], with_vectors=True)
    wanted = [pool[row].id for row in (3, 1) if pool[row].id in model.held]
    assert [item.id for item in found] == wanted
    assert numbers is not None
    for id, vector in zip(wanted, numbers, strict=True):
        np.testing.assert_array_equal(vector, model.held[id][1])


def test_two_changes_of_one_item_both_count(store: VectorStore) -> None:
    (item,) = items(1)
    store.add([item], image_vectors(1, SIZE))
    assert store.update([Changes(item.id, path="x"), Changes(item.id, tags=("t",))]) == []
    ((changed,), _) = store.get([item.id])
    assert (changed.path, changed.tags, changed.labels) == ("x", ("t",), item.labels)


def test_a_vector_index_finds_nearly_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_store, "INDEXED_ROWS", 1000)
    vectors = image_vectors(3200, 64)
    store = LanceStore(tmp_path, 64, FIELDS, create=True)
    added = items(3000)
    for start in range(0, 3000, 1000):
        store.add(added[start : start + 1000], vectors[start : start + 1000])
    assert store.needs_maintenance
    store.maintain()
    assert not store.needs_maintenance
    assert store.recall is not None
    assert store.recall >= 0.99
    # Items after the vector index was made are found too.
    late = items(3200)[3000:]
    store.add(late, vectors[3000:])
    store.close()
    store = LanceStore(tmp_path, 64, FIELDS)
    for chosen in (None, filters.Equals("year", (2000,))):
        for start in range(0, 3200, 400):
            queries = vectors[start : start + 8]
            found = store.search(queries, 10, chosen=chosen)
            exact = store.search(queries, 10, chosen=chosen, effort="exact")
            for one, other in zip(found, exact, strict=True):
                assert len(one) == len(other) == 10
                same = {hit.item.id for hit in one} & {hit.item.id for hit in other}
                assert len(same) >= 9
    assert store.search(vectors[3100:3101], 1)[0][0].item.id == late[100].id
    store.close()
