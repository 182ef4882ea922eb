"""The daemon's SQLite database: an index that can be rebuilt from the job folders."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import structlog

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import describe_mode

_log = structlog.get_logger(__name__)

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_DISK = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
)
_SUFFIXES = ("", "-journal", "-wal", "-shm")
_SCHEMA = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"


class Database:
    """A WAL-mode SQLite connection, used from the event loop's thread only.

    Statements run inline instead of in a thread: each is an indexed read or a short write of well
    under a millisecond.

    Args:
        path: the database file, created if missing; ":memory:" for tests.
        schemas: SQL scripts that contain only ``CREATE ... IF NOT EXISTS``.

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
        """What is wrong with the file, or "" if it is sound. Reads all of it, at about 100 MB/s."""
        try:
            ((page_bytes,),) = self._connection.execute("PRAGMA page_size").fetchall()
            # SQLite treats a truncated last page as one that ends with zeros.
            if self._path != ":memory:" and os.stat(self._path).st_size % page_bytes:
                return "the last page is truncated"
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
                    return f"the definition of {name} is not the one of this version"
        return ""

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Runs one statement, which is committed immediately unless in a ``transaction``.

        Raises:
            MultigrainError: STORAGE, if the disk is full or fails, or the file is damaged.
            sqlite3.Error: for any other reason.
        """
        with _storage_errors():
            return self._connection.execute(statement, parameters)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commits all statements of the block together, or none of them if it raises."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has already rolled it back
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self._connection.close()


def open_index(path: Path, schemas: Sequence[str]) -> Database:
    """Opens the index. One that is damaged, or of another version, is moved aside and recreated.

    Raises:
        sqlite3.Error: if the file cannot be opened or created.
    """
    try:
        damage = _in_its_place(path)
        if not damage:
            database = Database(path, schemas)
            damage = database.damage()
            if not damage:
                return database
            database.close()
    except sqlite3.DatabaseError as error:
        # A table with other columns is reported as SQLITE_ERROR ("no such column").
        if not _among(error, _DAMAGED | {sqlite3.SQLITE_ERROR}):
            raise
        damage = str(error)
    aside = move_aside(path, "damaged")
    _log.error("index damaged; rebuilding it from the job folders", reason=damage, old=aside.name)
    return Database(path, schemas)


def _in_its_place(path: Path) -> str:
    """What is where SQLite's files should be, if it is no file that SQLite can open; or ""."""
    for suffix in _SUFFIXES:
        file = path.with_name(path.name + suffix)
        try:
            mode = os.stat(file).st_mode
        except OSError as error:
            if os.path.lexists(file):
                return f"{file.name}: {error.strerror}"
            continue
        if not stat.S_ISREG(mode):
            return f"{file.name} is {describe_mode(mode)}"
    return ""


def move_aside(path: Path, reason: str) -> Path:
    """Renames the database with SQLite's other files to ``PATH.REASON-TIME``; returns that."""
    aside = path.with_name(f"{path.name}.{reason}-{time.time_ns()}")
    for suffix in reversed(_SUFFIXES):
        file = path.with_name(path.name + suffix)
        if os.path.lexists(file):
            file.rename(aside.with_name(aside.name + suffix))
    return aside


def _among(error: sqlite3.Error, codes: frozenset[int]) -> bool:
    # The lowest byte is the primary result code.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in codes


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if _among(error, _DISK):
            raise MultigrainError(
                ErrorKind.STORAGE,
                f"the job index cannot be written ({error}); free up disk space in the data "
                "directory, or repair the disk",
            ) from error
        if _among(error, _DAMAGED):
            raise MultigrainError(
                ErrorKind.STORAGE,
                f"the job index is damaged ({error}); restart the daemon, which rebuilds it from "
                "the job folders",
            ) from error
        raise
