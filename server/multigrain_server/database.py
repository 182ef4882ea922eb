"""The daemon's one SQLite file: an index that can be rebuilt from the folders beside it."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import structlog

from multigrain.errors import ErrorKind, MultigrainError

_log = structlog.get_logger(__name__)

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_DISK = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
)
_SCHEMA = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"


class Database:
    """A WAL-mode SQLite connection, used from the event loop's thread only.

    Every statement here is an indexed read or a short write (well under a millisecond), so
    it runs inline instead of in a thread.

    Args:
        path: the database file, created if missing; ":memory:" for tests.
        schemas: statements of each part, all of them ``CREATE ... IF NOT EXISTS``.

    Raises:
        sqlite3.Error: if it cannot be opened.
    """

    def __init__(self, path: Path | str, schemas: Sequence[str]) -> None:
        self._path = path
        self._schemas = schemas
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            for schema in schemas:
                self._connection.executescript(schema)
        except BaseException:
            self._connection.close()
            raise

    def damage(self) -> str:
        """What is wrong with the file, or ""; reads all of it (some 100 MB a second)."""
        try:
            ((page_bytes,),) = self._connection.execute("PRAGMA page_size").fetchall()
            # SQLite takes a last page that is cut for one that ends with zeros.
            if self._path != ":memory:" and os.stat(self._path).st_size % page_bytes:
                return "its last page is cut"
            ((found,),) = self._connection.execute("PRAGMA quick_check(1)").fetchall()
            if found != "ok":
                return str(found).splitlines()[-1]
            known = {row["name"]: row["sql"] for row in self._connection.execute(_SCHEMA)}
        except sqlite3.DatabaseError as error:
            if not _among(error, _DAMAGED):
                raise
            return str(error)
        with closing(Database(":memory:", self._schemas)) as fresh:
            for name, sql in fresh._connection.execute(_SCHEMA):
                if known.get(name) != sql:
                    return f"{name} is not as this version makes it"
        return ""

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Runs one statement; outside ``transaction`` it is committed at once.

        Raises:
            MultigrainError: STORAGE, if the disk is full or fails, or the file is damaged.
            sqlite3.Error: as ever.
        """
        with _storage_errors():
            return self._connection.execute(statement, parameters)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commits all statements of the block together, or none if it raises."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has ended it already
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self._connection.close()


def open_index(path: Path, schemas: Sequence[str]) -> Database:
    """Opens the index; one that is damaged, or of another version, is put aside and begun anew.

    Raises:
        sqlite3.Error: if the disk does not allow it.
    """
    try:
        database = Database(path, schemas)
        damage = database.damage()
        if not damage:
            return database
        database.close()
    except sqlite3.DatabaseError as error:
        # A table of that name with other columns is SQLITE_ERROR: "no such column".
        if not _among(error, _DAMAGED | {sqlite3.SQLITE_ERROR}):
            raise
        damage = str(error)
    aside = put_aside(path, "damaged")
    _log.error("index damaged; rebuilding it from the job folders", reason=damage, old=aside.name)
    return Database(path, schemas)


def put_aside(path: Path, word: str) -> Path:
    """Renames the database and SQLite's files beside it; returns the new name."""
    aside = path.with_name(f"{path.name}.{word}-{time.time_ns()}")
    for suffix in ("-wal", "-shm", ""):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(aside.with_name(aside.name + suffix))
    return aside


def _among(error: sqlite3.Error, codes: frozenset[int]) -> bool:
    # The bits above say more precisely what.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in codes


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if _among(error, _DISK):
            raise MultigrainError(
                ErrorKind.STORAGE,
                f"the index of jobs cannot be written ({error}); make room on the disk of the "
                "data directory, or mend it",
            ) from error
        if _among(error, _DAMAGED):
            raise MultigrainError(
                ErrorKind.STORAGE,
                f"the index of jobs is damaged ({error}): restart the daemon, which rebuilds it "
                "from the job folders",
            ) from error
        raise
