"""The engine for small indexes: items in SQLite, vectors compared by NumPy, every one of them."""

from __future__ import annotations

import sqlite3
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from multigrain.index.filters import Filter, Ids, matches
from multigrain.index.items import Changes, Item, changed_item
from multigrain.index.store import Effort, Hit, IndexDamagedError, IndexStorageError

FILE = "items.sqlite"

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE items (
    id TEXT PRIMARY KEY, item BLOB NOT NULL, vector BLOB NOT NULL, checksum INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE state (version INTEGER NOT NULL, items INTEGER NOT NULL);
INSERT INTO state VALUES (0, 0);
COMMIT;
"""
# Errors of SQLite that are not of the file's content.
_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}
_INSERT = "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)"
_BLOCK = 1 << 22  # similarities in memory at a time


class ExactStore:
    """A :class:`~multigrain.index.store.VectorStore` that compares a query with every vector.

    All items and vectors are in memory. Each row has a checksum, and the number of rows is stored
    beside them, so that damage is noticed when the store is opened.

    Args:
        folder: where its file is, or will be.
        size: C, of the vectors.
        create: whether it is a new one.

    Raises:
        IndexDamagedError: if the file is damaged or missing.
        IndexStorageError: if it cannot be opened.
    """

    def __init__(self, folder: Path, size: int, *, create: bool = False) -> None:
        self._path = folder / FILE
        if not create and not self._path.exists():
            raise IndexDamagedError(f"{self._path} is missing")
        self._size = size
        self._lock = threading.RLock()
        self._items: list[Item] = []
        self._rows: dict[str, int] = {}
        self._vectors = np.empty((1024, size), np.float32)
        with self._errors():
            self._database = sqlite3.connect(
                self._path, check_same_thread=False, isolation_level=None
            )
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            # With the folder synchronized after the journal is deleted, a commit survives a loss
            # of power.
            self._database.execute("PRAGMA synchronous = EXTRA")
            if create:
                self._database.executescript(_SCHEMA)
            self._version = self._load()

    @property
    def version(self) -> int:
        return self._version

    def count(self, chosen: Filter | None = None) -> int:
        with self._lock:
            return len(self._items) if chosen is None else len(self._chosen(chosen))

    def add(self, items: Sequence[Item], vectors: NDArray[np.float32]) -> None:
        rows = np.ascontiguousarray(vectors, "<f4")
        with self._lock:
            added = sum(item.id not in self._rows for item in items)
            with self._commit(added) as database:
                database.executemany(
                    _INSERT, (_row(item, row) for item, row in zip(items, rows, strict=True))
                )
            for item, row in zip(items, rows, strict=True):
                self._put(item, row)

    def update(self, changes: Sequence[Changes]) -> list[str]:
        missing = []
        changed: dict[str, Item] = {}
        with self._lock:
            for change in changes:
                row = self._rows.get(change.id)
                if row is None:
                    missing.append(change.id)
                else:
                    item = changed.get(change.id, self._items[row])
                    changed[change.id] = changed_item(item, change)
            if changed:
                with self._commit(0) as database:
                    database.executemany(
                        _INSERT,
                        (_row(item, self._vectors[self._rows[id]]) for id, item in changed.items()),
                    )
            for id, item in changed.items():
                self._items[self._rows[id]] = item
        return missing

    def delete(self, chosen: Filter) -> int:
        with self._lock:
            ids = [self._items[row].id for row in self._chosen(chosen).tolist()]
            if ids:
                with self._commit(-len(ids)) as database:
                    database.executemany("DELETE FROM items WHERE id = ?", ((id,) for id in ids))
            for id in ids:
                self._remove(id)
        return len(ids)

    def get(
        self, ids: Sequence[str], with_vectors: bool = False
    ) -> tuple[list[Item], NDArray[np.float32] | None]:
        with self._lock:
            rows = [self._rows[id] for id in ids if id in self._rows]
            items = [self._items[row] for row in rows]
            return items, self._vectors[rows] if with_vectors else None

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        chosen: Filter | None = None,
        effort: Effort = "balanced",
        with_vectors: bool = False,
    ) -> list[list[Hit]]:
        found = []
        with self._lock:
            rows = None if chosen is None else self._chosen(chosen)
            count = len(self._items)
            vectors = self._vectors[:count] if rows is None else self._vectors[rows]
            at_once = max(1, _BLOCK // max(1, len(vectors)))
            for start in range(0, len(queries), at_once):
                for similarity in queries[start : start + at_once] @ vectors.T:
                    best = _largest(similarity, k)
                    at = best if rows is None else rows[best]
                    found.append(
                        [
                            Hit(
                                self._items[row],
                                float(similarity[place]),
                                self._vectors[row].copy() if with_vectors else None,
                            )
                            for row, place in zip(at.tolist(), best.tolist(), strict=True)
                        ]
                    )
        return found

    def scan(
        self, chosen: Filter | None = None, rows: int = 1000
    ) -> Iterator[tuple[list[Item], NDArray[np.float32]]]:
        with self._lock:
            at = np.arange(len(self._items)) if chosen is None else self._chosen(chosen)
            order = sorted(at.tolist(), key=lambda row: self._items[row].id)
            items, vectors = [self._items[row] for row in order], self._vectors[order]
        for start in range(0, len(items), rows):
            yield items[start : start + rows], vectors[start : start + rows]

    def maintain(self) -> None:
        """Does nothing: SQLite uses the space of deleted rows again."""

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _load(self) -> int:
        """Reads and checks all rows; returns the version."""
        rows = self._database.execute("SELECT id, item, vector, checksum FROM items")
        for id, item, vector, checksum in rows:
            if checksum != _checksum(id, item, vector) or len(vector) != 4 * self._size:
                raise IndexDamagedError(f"{self._path}: the row of item {id!r} is damaged")
            self._put(msgspec.msgpack.decode(item, type=Item), np.frombuffer(vector, "<f4"))
        state = self._database.execute("SELECT version, items FROM state").fetchall()
        if len(state) != 1 or state[0][1] != len(self._items):
            raise IndexDamagedError(
                f"{self._path}: {len(self._items)} items are left of "
                f"{state[0][1] if state else 'an unknown number'}"
            )
        return int(state[0][0])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises SQLite's errors as those of a store."""
        try:
            yield
        except (sqlite3.DatabaseError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNAVAILABLE:
                raise IndexStorageError(f"{self._path}: {error}") from error
            raise IndexDamagedError(f"{self._path}: {error}") from error

    @contextmanager
    def _commit(self, added: int) -> Iterator[sqlite3.Connection]:
        """A transaction that adds a number of items; the version grows with it."""
        with self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute(
                    "UPDATE state SET version = version + 1, items = items + ?", (added,)
                )
                self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite rolls back by itself after some errors
                    self._database.execute("ROLLBACK")
                raise
        self._version += 1

    def _put(self, item: Item, vector: NDArray[np.float32]) -> None:
        row = self._rows.setdefault(item.id, len(self._items))
        if row == len(self._items):
            self._items.append(item)
            if row == len(self._vectors):
                self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
        self._items[row], self._vectors[row] = item, vector

    def _remove(self, id: str) -> None:
        """Removes an item from the memory; the last one takes its place."""
        row, last = self._rows.pop(id), self._items.pop()
        if last.id != id:
            self._vectors[row] = self._vectors[len(self._items)]
            self._items[row], self._rows[last.id] = last, row

    def _chosen(self, chosen: Filter) -> NDArray[np.int64]:
        """The rows that a filter chooses."""
        if isinstance(chosen, Ids):
            rows = sorted({self._rows[id] for id in chosen.ids if id in self._rows})
        else:
            rows = [row for row, item in enumerate(self._items) if matches(chosen, item)]
        return np.array(rows, np.int64)


def _row(item: Item, vector: NDArray[np.float32]) -> tuple[str, bytes, bytes, int]:
    encoded, numbers = msgspec.msgpack.encode(item), vector.tobytes()
    return item.id, encoded, numbers, _checksum(item.id, encoded, numbers)


def _checksum(id: str, item: bytes, vector: bytes) -> int:
    return zlib.crc32(vector, zlib.crc32(item, zlib.crc32(id.encode())))


def _largest(similarity: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Places of the k largest numbers, the largest first; of equal ones, the earlier first."""
    if k < len(similarity):
        least = np.partition(similarity, -k)[-k]
        above = np.flatnonzero(similarity > least)
        equal = np.flatnonzero(similarity == least)[: k - len(above)]
        places = np.concatenate([above, equal])
    else:
        places = np.arange(len(similarity))
    result: NDArray[np.int64] = places[np.lexsort((places, -similarity[places]))]
    return result
