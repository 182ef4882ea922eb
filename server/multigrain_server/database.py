"""The daemon's one SQLite file: an index that can be rebuilt from the folders beside it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Database:
    """A WAL-mode SQLite connection, used from the event loop's thread only.

    Every statement here is an indexed read or a short write (well under a millisecond), so
    it runs inline instead of in a thread.

    Args:
        path: the database file, created if missing; ":memory:" for tests.
        schemas: statements of each part, all of them ``CREATE ... IF NOT EXISTS``.
    """

    def __init__(self, path: Path | str, schemas: Sequence[str]) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        for schema in schemas:
            self._connection.executescript(schema)

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Runs one statement; outside ``transaction`` it is committed at once."""
        return self._connection.execute(statement, parameters)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commits all statements of the block together, or none if it raises."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()
