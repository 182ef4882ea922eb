"""The engine for large indexes: a LanceDB table in a folder or in object storage.

LanceDB's files never change once written, and it does not synchronize them to the disk. So after
each commit this module synchronizes the new files and their folders, and then writes a file of its
own, ``files.json``, that lists every file of the table with its checksum: when the store is opened,
damage is found and named. Object storage does both itself.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import msgspec
import numpy as np
import pyarrow as pa
from lancedb.index import BTree, IvfRq
from numpy.typing import NDArray

from multigrain.files import open_regular, read_bytes
from multigrain.index.filters import Filter, Ids
from multigrain.index.items import Changes, Field, FieldType, Item, changed_item
from multigrain.index.sql import column_of, condition
from multigrain.index.store import Effort, Hit, IndexDamagedError, IndexStorageError
from multigrain.storage import replace_file, sync_file, sync_folder

TABLE = "items"
FILES = "files.json"
INDEXED_ROWS = 20_000
"""From this many items on, searches use an index of the vectors instead of comparing them all."""

_ARROW: dict[FieldType, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
}
_MAX_FILES_JSON = 1 << 26
_READ_BYTES = 1 << 20
_CALIBRATION = 128  # queries
_RECALL = 0.995  # of the calibration; 0.99 is promised
# Partitions searched and candidates compared exactly, per wanted item, from cheap to thorough.
_SETTINGS = ((10, 3), (20, 3), (20, 10), (40, 10), (80, 10), (160, 20), (320, 50))
_UNINDEXED = 0.1  # fraction of items that may be outside the vector index before it is made anew
_SMALL_COMMITS = 20  # commits after which small files are merged
_KEEP = timedelta(minutes=15)  # older versions are removed; searches of a version take seconds


class _File(msgspec.Struct, frozen=True):
    bytes: int
    blake2b: str


class _Files(msgspec.Struct):
    """``files.json``.

    Attributes:
        version: LanceDB's version of the table.
        items: their number.
        files: by path below the table's folder.
        settings: place in ``_SETTINGS`` with which the vector index was measured to find enough.
        recall: what was measured then; None without a vector index.
        cleaning: old files may be missing, as a removal of old versions was interrupted.
    """

    version: int = 0
    items: int = 0
    files: dict[str, _File] = {}
    settings: int = 0
    recall: float | None = None
    cleaning: bool = False


class LanceStore:
    """A :class:`~multigrain.index.store.VectorStore` in a LanceDB table.

    Args:
        folder: of ``files.json`` and, without ``uri``, of the table.
        size: C, of the vectors.
        fields: typed attributes of the items.
        uri: of the folder of the table in object storage.
        storage_options: of the object storage, as LanceDB takes them.
        create: whether it is a new one.

    Raises:
        IndexDamagedError: if a file of the table is missing or damaged; the message names it.
        IndexStorageError: if it cannot be opened.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        fields: Sequence[Field] = (),
        *,
        uri: str | None = None,
        storage_options: dict[str, str] | None = None,
        create: bool = False,
    ) -> None:
        self._folder = folder
        self._local = uri is None
        self._size = size
        self._fields = tuple(fields)
        self._schema = _schema(size, self._fields)
        self._writing = threading.RLock()
        self._commits = 0
        if self._local and not create:
            self._files = self._read_files()
            if not self._files.cleaning:
                self._check_files()
        with self._errors():
            self._database = lancedb.connect(uri or str(folder), storage_options=storage_options)
            if create:
                self._table = self._database.create_table(TABLE, schema=self._schema)
            else:
                self._table = self._database.open_table(TABLE)
        if create or not self._local:
            self._files = _Files()
        if create:
            self._record()
        else:
            self._check_table()

    @property
    def version(self) -> int:
        return int(self._table.version)

    @property
    def recall(self) -> float | None:
        """The fraction of the nearest items that balanced searches found when the vector index
        was made; None without one."""
        return self._files.recall

    def count(self, chosen: Filter | None = None) -> int:
        with self._errors():
            return int(self._table.count_rows(None if chosen is None else condition(chosen)))

    def add(self, items: Sequence[Item], vectors: NDArray[np.float32]) -> None:
        rows = self._rows(items, np.ascontiguousarray(vectors, np.float32))
        with self._writing, self._errors():
            if self.count(Ids(tuple(item.id for item in items))):
                self._upsert(rows)
            else:
                self._table.add(rows)
            self._record()

    def update(self, changes: Sequence[Changes]) -> list[str]:
        with self._writing, self._errors():
            items, vectors = self.get([change.id for change in changes], with_vectors=True)
            by_id = {item.id: item for item in items}
            missing = [change.id for change in changes if change.id not in by_id]
            for change in changes:
                if change.id in by_id:
                    by_id[change.id] = changed_item(by_id[change.id], change)
            if items:
                assert vectors is not None
                unique = list({item.id: row for row, item in enumerate(items)}.values())
                changed = [by_id[items[row].id] for row in unique]
                self._upsert(self._rows(changed, vectors[unique]))
                self._record()
        return missing

    def delete(self, chosen: Filter) -> int:
        with self._writing, self._errors():
            count = self.count(chosen)
            if count:
                self._table.delete(condition(chosen))
                self._record()
        return count

    def get(
        self, ids: Sequence[str], with_vectors: bool = False
    ) -> tuple[list[Item], NDArray[np.float32] | None]:
        with self._errors():
            query = self._table.search().where(condition(Ids(tuple(dict.fromkeys(ids)))))
            rows = query.limit(len(ids)).to_arrow()
        items = self._items(rows)
        at = {item.id: row for row, item in enumerate(items)}
        order = [at[id] for id in ids if id in at]
        vectors = _vectors(rows, self._size)[order] if with_vectors else None
        return [items[row] for row in order], vectors

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        chosen: Filter | None = None,
        effort: Effort = "balanced",
        with_vectors: bool = False,
    ) -> list[list[Hit]]:
        with self._errors():
            rows = self._search(queries, k, chosen, effort)
        items, vectors = self._items(rows), _vectors(rows, self._size)
        of = rows["query_index"].to_numpy() if len(queries) > 1 else np.zeros(len(items), int)
        # From the vectors and not LanceDB's distance, which is of quantized ones in some versions.
        similarity = np.einsum("nc,nc->n", queries[of], vectors) if len(items) else np.empty(0)
        found: list[list[Hit]] = [[] for _ in range(len(queries))]
        for row in np.lexsort((-similarity, of)).tolist():
            vector = vectors[row] if with_vectors else None
            found[of[row]].append(Hit(items[row], float(similarity[row]), vector))
        return found

    def scan(
        self, chosen: Filter | None = None, rows: int = 1000
    ) -> Iterator[tuple[list[Item], NDArray[np.float32]]]:
        with self._errors():
            table = self._database.open_table(TABLE)
            table.checkout(self._table.version)
            query = table.search()
            if chosen is not None:
                query = query.where(condition(chosen))
            ids = query.select(["id"]).with_row_id(True).limit(self.count(chosen) or 1).to_arrow()
            order = ids.sort_by("id")["_rowid"].to_pylist()
            for start in range(0, len(order), rows):
                part = table.take_row_ids(order[start : start + rows]).to_arrow().sort_by("id")
                yield self._items(part), _vectors(part, self._size)

    def maintain(self) -> None:
        with self._writing, self._errors():
            self._table.optimize(cleanup_older_than=timedelta(days=36500))
            items = self.count()
            if items >= INDEXED_ROWS:
                self._index(items)
            self._record()
            self._clean()
            self._commits = 0

    @property
    def needs_maintenance(self) -> bool:
        """Whether :meth:`maintain` would make searches faster."""
        return self._commits >= _SMALL_COMMITS or self._unindexed() > _UNINDEXED

    def close(self) -> None:
        del self._table, self._database

    def _search(
        self, queries: NDArray[np.float32], k: int, chosen: Filter | None, effort: Effort
    ) -> pa.Table:
        query: Any = self._table.search(queries if len(queries) > 1 else queries[0])
        query = query.distance_type("dot").limit(k)
        if chosen is not None:
            query = query.where(condition(chosen), prefilter=True)
        if effort == "exact":
            query = query.bypass_vector_index()
        else:
            settings = self._files.settings if effort == "balanced" else 0
            probes, refine = _SETTINGS[settings]
            query = query.nprobes(probes).refine_factor(refine)
        return query.to_arrow()

    def _upsert(self, rows: pa.Table) -> None:
        merge = self._table.merge_insert("id").when_matched_update_all()
        merge.when_not_matched_insert_all().execute(rows)

    def _unindexed(self) -> float:
        """The fraction of the items that are outside the vector index; 0 if none is wanted."""
        with self._errors():
            items = self.count()
            if items < INDEXED_ROWS:
                return 0.0
            stats = self._table.index_stats("vector_idx")
        return 1.0 if stats is None else stats.num_unindexed_rows / items

    def _index(self, items: int) -> None:
        """Makes or extends the vector index, and measures with which settings it finds enough."""
        if self._unindexed() > _UNINDEXED:
            self._table.create_index("vector", config=IvfRq(distance_type="dot"), replace=True)
            self._table.create_index("id", config=BTree(), replace=True)
        sample = self._table.take_offsets(
            np.random.default_rng(0).choice(items, min(items, _CALIBRATION), replace=False).tolist()
        ).to_arrow()
        queries = _vectors(sample, self._size)
        exact = self._search(queries, 10, None, "exact")
        least = _tenth(exact, queries, self._size)
        for settings in range(len(_SETTINGS)):
            self._files.settings = settings
            found = self._search(queries, 10, None, "balanced")
            of = found["query_index"].to_numpy()
            similarity = np.einsum("nc,nc->n", queries[of], _vectors(found, self._size))
            self._files.recall = float((similarity >= least[of] - 1e-6).sum() / (10 * len(queries)))
            if self._files.recall >= _RECALL:
                break

    def _clean(self) -> None:
        """Removes old versions. It may be interrupted: then the files are checked by content."""
        if self._local:
            self._files.cleaning = True
            self._write_files()
        self._table.optimize(cleanup_older_than=_KEEP)
        self._files.cleaning = False
        self._record()

    def _record(self) -> None:
        """Makes a commit durable: synchronizes new files and lists them."""
        self._commits += 1
        self._files.version, self._files.items = self.version, self.count()
        if not self._local:
            return
        present = self._present()
        known = self._files.files
        new = [name for name in present if name not in known]
        # With those above them, which may be new themselves.
        folders = {self._folder / parent for name in new for parent in Path(name).parents}
        for name in new:
            sync_file(self._folder / name)
        for folder in folders | {self._folder}:
            sync_folder(folder)
        for name in new:
            known[name] = _describe(self._folder / name)
        for name in set(known) - set(present):
            del known[name]
        self._write_files()

    def _write_files(self) -> None:
        document = msgspec.json.encode(self._files)
        replace_file(self._folder / FILES, _digest(document) + b"\n" + document)

    def _read_files(self) -> _Files:
        path = self._folder / FILES
        try:
            data = read_bytes(path, max_bytes=_MAX_FILES_JSON)
            checksum, _, document = data.partition(b"\n")
            if checksum != _digest(document):
                raise IndexDamagedError(f"{path} is damaged")
            return msgspec.json.decode(document, type=_Files)
        except FileNotFoundError:
            raise IndexDamagedError(f"{path} is missing") from None
        except OSError as error:
            raise IndexStorageError(f"{path}: {error.strerror or error}") from error
        except msgspec.MsgspecError as error:
            raise IndexDamagedError(f"{path} is damaged: {error}") from error

    def _present(self) -> list[str]:
        table = self._folder / f"{TABLE}.lance"
        return [
            os.path.relpath(os.path.join(folder, name), self._folder)
            for folder, _, names in os.walk(table)
            for name in names
            if name != "latest_version_hint.json"  # the only one that changes; it is optional
        ]

    def _check_files(self) -> None:
        """Compares the files with their list. There may be more: of a commit that was interrupted
        before it was acknowledged."""
        for name, expected in self._files.files.items():
            path = self._folder / name
            try:
                found = _describe(path)
            except FileNotFoundError:
                raise IndexDamagedError(f"{path} is missing") from None
            except OSError as error:
                raise IndexStorageError(f"{path}: {error.strerror or error}") from error
            if found != expected:
                raise IndexDamagedError(f"{path} is damaged")

    def _check_table(self) -> None:
        """Checks what the table holds against what was acknowledged."""
        version, items = self.version, self.count()
        if version < self._files.version or (
            version == self._files.version and items != self._files.items
        ):
            raise IndexDamagedError(
                f"{self._folder / TABLE}.lance has version {version} with {items} items; "
                f"version {self._files.version} with {self._files.items} was written"
            )
        if self._files.cleaning:
            for part in self._table.search().limit(max(1, items)).to_batches():
                rows = pa.Table.from_batches([part])
                wrong = _checksums(self._items(rows), _vectors(rows, self._size))
                if not np.array_equal(wrong, rows["checksum"].to_numpy()):
                    raise IndexDamagedError(f"{self._folder / TABLE}.lance has damaged rows")
            self._files.cleaning = False
        if self._local:
            self._record()
        self._commits = 0

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises LanceDB's errors as those of a store."""
        try:
            yield
        except (IndexDamagedError, IndexStorageError):
            raise
        except OSError as error:
            raise IndexStorageError(f"{self._folder}: {error}") from error
        except (RuntimeError, ValueError, pa.ArrowException) as error:
            text = str(error)
            if any(word in text for word in ("No space left", "Permission denied", "Generic S3")):
                raise IndexStorageError(f"{self._folder}: {text}") from error
            raise IndexDamagedError(f"{self._folder}: {text}") from error

    def _rows(self, items: Sequence[Item], vectors: NDArray[np.float32]) -> pa.Table:
        columns: dict[str, Any] = {
            "id": [item.id for item in items],
            "sha256": [item.sha256 for item in items],
            "path": [item.path for item in items],
            "labels": [list(item.labels) for item in items],
            "tags": [list(item.tags) for item in items],
            "added": [item.added for item in items],
            "checksum": _checksums(items, vectors),
        }
        for field in self._fields:
            columns[column_of(field.name)] = [item.attributes.get(field.name) for item in items]
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self._size)
        return pa.table(columns, schema=self._schema)

    def _items(self, rows: pa.Table) -> list[Item]:
        wanted = [name for name in rows.column_names if name != "vector"]
        return [
            Item(
                id=row["id"],
                sha256=row["sha256"],
                path=row["path"],
                labels=tuple(row["labels"]),
                tags=tuple(row["tags"]),
                attributes={
                    field.name: row[column_of(field.name)]
                    for field in self._fields
                    if row[column_of(field.name)] is not None
                },
                added=row["added"],
            )
            for row in rows.select(wanted).to_pylist()
        ]


def _schema(size: int, fields: Sequence[Field]) -> pa.Schema:
    texts = pa.list_(pa.string())
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("labels", texts, nullable=False),
            pa.field("tags", texts, nullable=False),
            pa.field("added", pa.float64(), nullable=False),
            pa.field("checksum", pa.int64(), nullable=False),
            *(pa.field(column_of(field.name), _ARROW[field.type]) for field in fields),
            pa.field("vector", pa.list_(pa.float32(), size), nullable=False),
        ]
    )


def _vectors(rows: pa.Table, size: int) -> NDArray[np.float32]:
    column = rows["vector"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no rows
        return np.empty((0, size), np.float32)
    result: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return result.reshape(-1, size)


def _checksums(items: Sequence[Item], vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.array(
        [
            zlib.crc32(vector.tobytes(), zlib.crc32(msgspec.msgpack.encode(item)))
            for item, vector in zip(items, vectors, strict=True)
        ],
        np.int64,
    )


def _tenth(found: pa.Table, queries: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """The least similarity that each query found."""
    of = found["query_index"].to_numpy()
    similarity = np.einsum("nc,nc->n", queries[of], _vectors(found, size))
    least = np.full(len(queries), np.inf, np.float32)
    np.minimum.at(least, of, similarity)
    return least


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).hexdigest().encode()


def _describe(path: Path) -> _File:
    digest = hashlib.blake2b(digest_size=16)
    with open_regular(path) as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
        return _File(os.fstat(file.fileno()).st_size, digest.hexdigest())
