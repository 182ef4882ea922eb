"""The indexes of a daemon: folders with a manifest and a store, and the aliases of indexes."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import read_bytes
from multigrain.index.exact_store import ExactStore
from multigrain.index.items import FieldType, check_fields
from multigrain.index.manifest import (
    MANIFEST,
    Engine,
    IndexName,
    Manifest,
    read_manifest,
    unknown_index,
    write_manifest,
)
from multigrain.index.store import IndexDamagedError, IndexStorageError, VectorStore
from multigrain.storage import clear_temporary, make_folder, publish, replace_file

_LOG = logging.getLogger("multigrain.index")

EXACT_ITEMS = 20_000
"""An index of more items moves from the exact engine to LanceDB, where that is installed."""
ALIASES = "aliases.json"
_MAX_BYTES = 1 << 20


class OpenIndex:
    """An index whose store is open.

    Attributes:
        manifest: of the index.
        store: to search and to change. Changes are made with ``writing`` held.
        writing: so that an index is not changed while it moves to another engine.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self.manifest = manifest
        self.writing = threading.Lock()
        self.fields: dict[str, FieldType] = {field.name: field.type for field in manifest.fields}
        self.store = open_store(folder, manifest)

    def maintain(self) -> None:
        """Makes searches fast again after changes; moves a grown index to LanceDB."""
        grown = self.manifest.engine == "exact" and not self.manifest.fixed_engine
        if grown and self.store.count() > EXACT_ITEMS and lancedb_is_installed():
            self._move("lancedb")
        if needs_maintenance(self.store):
            with self.writing:
                self.store.maintain()

    def _move(self, engine: Engine) -> None:
        """Copies the items into a new store and continues with that."""
        old = self.manifest.store
        number = int(old.removeprefix("store-")) + 1
        moved = msgspec.structs.replace(self.manifest, engine=engine, store=f"store-{number}")
        shutil.rmtree(self._folder / moved.store, ignore_errors=True)  # of an interrupted move
        with self.writing:
            store = open_store(self._folder, moved, create=True)
            for items, vectors in self.store.scan(rows=5000):
                store.add(items, vectors)
            write_manifest(self._folder, moved)
            before, self.store, self.manifest = self.store, store, moved
        before.close()
        shutil.rmtree(self._folder / old, ignore_errors=True)
        _LOG.info("index %s moved to %s", self.manifest.name, engine)


class Indexes:
    """All indexes in a folder. Methods block and may be called by several threads.

    Args:
        folder: of the indexes; created if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}
        self._open: dict[str, OpenIndex] = {}
        make_folder(folder, mode=0o700)
        clear_temporary(folder)
        self._aliases = self._read_aliases()

    def names(self) -> list[str]:
        """Names of the indexes, sorted, including damaged ones."""
        return sorted(path.parent.name for path in self._folder.glob(f"*/{MANIFEST}"))

    def aliases(self) -> dict[str, str]:
        """Names of indexes by alias."""
        with self._lock:
            return dict(self._aliases)

    def create(self, manifest: Manifest) -> OpenIndex:
        """Creates an index.

        Raises:
            MultigrainError: ALREADY_EXISTS, INVALID_FIELD, UNSUPPORTED, STORAGE.
        """
        try:
            check_fields(manifest.fields)
        except ValueError as error:
            raise MultigrainError.field("fields", str(error)) from None
        if manifest.engine == "lancedb" and not lancedb_is_installed():
            raise MultigrainError(
                ErrorKind.UNSUPPORTED,
                "engine lancedb is not installed on the server: pip install 'multigrain[index]'",
            )
        with self._lock:
            folder = self._folder / manifest.name
            if folder.exists() or manifest.name in self._aliases:
                raise MultigrainError(
                    ErrorKind.ALREADY_EXISTS,
                    f"an index or an alias has the name {manifest.name!r} already",
                )
            aside = self._folder / f".tmp-{manifest.name}"
            shutil.rmtree(aside, ignore_errors=True)
            with storage_errors(manifest.name):
                make_folder(aside, mode=0o700)
                open_store(aside, manifest, create=True).close()
                write_manifest(aside, manifest)
                publish(aside, folder)
        return self.open(manifest.name)

    def open(self, name: str) -> OpenIndex:
        """Returns an index by its name or alias, opened and checked once.

        Raises:
            MultigrainError: NOT_FOUND; DATA_LOSS if it is damaged; STORAGE.
        """
        with self._lock:
            name = self._aliases.get(name, name)
            if (found := self._open.get(name)) is not None:
                return found
            opening = self._opening.setdefault(name, threading.Lock())
        with opening:  # the checks of a large index take seconds; others are answered meanwhile
            with self._lock:
                if (found := self._open.get(name)) is not None:
                    return found
            folder = self._folder / name
            with storage_errors(name):
                opened = OpenIndex(folder, read_manifest(folder, name))
            with self._lock:
                return self._open.setdefault(name, opened)

    def delete(self, name: str) -> None:
        """Deletes an index and its aliases.

        Raises:
            MultigrainError: NOT_FOUND; INVALID_FIELD for an alias; STORAGE.
        """
        with self._lock:
            if name in self._aliases:
                raise MultigrainError.field(
                    "name", f"{name!r} is an alias of {self._aliases[name]!r}: delete that"
                )
            folder = self._folder / name
            if name not in self.names():
                raise unknown_index(name, self.names())
            opened = self._open.pop(name, None)
            with storage_errors(name):
                self._write_aliases({a: n for a, n in self._aliases.items() if n != name})
                gone = self._folder / f".tmp-deleted-{name}"
                shutil.rmtree(gone, ignore_errors=True)
                folder.rename(gone)
        if opened is not None:
            with opened.writing:
                opened.store.close()
        shutil.rmtree(gone, ignore_errors=True)

    def set_alias(self, alias: str, name: str) -> None:
        """Has an alias mean an index; removes it if the name is empty.

        Raises:
            MultigrainError: NOT_FOUND, ALREADY_EXISTS, INVALID_FIELD, STORAGE.
        """
        try:
            msgspec.convert(alias, IndexName)
        except msgspec.ValidationError:
            raise MultigrainError.field(
                "alias",
                "must be letters, digits, '.', '_' and '-', and begin with a letter or digit",
            ) from None
        with self._lock:
            names = self.names()
            if alias in names:
                raise MultigrainError(
                    ErrorKind.ALREADY_EXISTS, f"an index has the name {alias!r}: choose another"
                )
            if name and name not in names:
                raise unknown_index(name, names)
            if not name and alias not in self._aliases:
                raise MultigrainError(ErrorKind.NOT_FOUND, f"there is no alias {alias!r}")
            aliases = {**self._aliases, alias: name}
            with storage_errors(alias):
                self._write_aliases({a: n for a, n in aliases.items() if n})

    def _read_aliases(self) -> dict[str, str]:
        try:
            data = read_bytes(self._folder / ALIASES, max_bytes=_MAX_BYTES)
            aliases = msgspec.json.decode(data, type=dict[IndexName, IndexName])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            _LOG.error("%s cannot be read: no index has an alias now: %s", ALIASES, error)
            return {}
        names = set(self.names())
        return {alias: name for alias, name in aliases.items() if name in names}

    def _write_aliases(self, aliases: dict[str, str]) -> None:
        if aliases != self._aliases:
            replace_file(self._folder / ALIASES, msgspec.json.encode(aliases))
            self._aliases = aliases


@contextmanager
def storage_errors(name: str) -> Iterator[None]:
    """Raises errors of an index's storage, within, as errors for the caller of a daemon."""
    try:
        yield
    except IndexDamagedError as error:
        _LOG.error("index %s is damaged: %s", name, error)
        raise MultigrainError(
            ErrorKind.DATA_LOSS,
            f"index {name} is damaged: {error}; restore it from a backup, or delete it and add its "
            "images again",
        ) from error
    except (IndexStorageError, OSError) as error:
        raise MultigrainError(
            ErrorKind.STORAGE, f"index {name}: the server's storage failed: {error}"
        ) from error


def lancedb_is_installed() -> bool:
    """Whether the package of the engine for large indexes is there."""
    return importlib.util.find_spec("lancedb") is not None


def open_store(folder: Path, manifest: Manifest, *, create: bool = False) -> VectorStore:
    """Opens the store of an index, or creates it.

    Raises:
        IndexDamagedError, IndexStorageError.
    """
    path = folder / manifest.store
    if create:
        make_folder(path, mode=0o700)
    if manifest.engine == "exact":
        return ExactStore(path, manifest.size, create=create)
    from multigrain.index.lance_store import LanceStore  # takes seconds to import

    return LanceStore(path, manifest.size, manifest.fields, create=create)


def needs_maintenance(store: VectorStore) -> bool:
    """Whether the searches of a store would be faster after its maintenance."""
    return bool(getattr(store, "needs_maintenance", False))
