"""The index process: it owns the indexes of a daemon and answers its requests.

Engines of indexes hold Python's lock for tens of milliseconds, load hundreds of megabytes and may
crash: in a process of their own they do not stop the daemon, which starts another one.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.index.indexes import Indexes, OpenIndex, storage_errors
from multigrain.index.items import Item
from multigrain.index.protocol import (
    Add,
    Answer,
    Count,
    Create,
    Delete,
    DeleteIndex,
    Done,
    EndScan,
    Failed,
    Found,
    Get,
    Items,
    List,
    Listed,
    Next,
    Open,
    Opened,
    Parser,
    Request,
    Scan,
    Search,
    SetAlias,
    Update,
    WireError,
    decode_request,
    encode,
)
from multigrain.memory import exit_if_out_of_memory

_LOG = logging.getLogger("multigrain.index")
_THREADS = 8
_READ_BYTES = 1 << 20
_MAINTENANCE_SECONDS = 5.0
# A scan whose reader has gone away is forgotten.
_SCAN_SECONDS = 600.0
_MAX_SCANS = 64

T = TypeVar("T")
_Vectors = NDArray[np.float32]
_Scan = Iterator[tuple[list[Item], _Vectors]]


class IndexProcess:
    """Answers requests until the daemon closes the socket.

    Args:
        folder: of the indexes.
        sock: connected stream socket.
    """

    def __init__(self, folder: Path, sock: socket.socket) -> None:
        self._indexes = Indexes(folder)
        self._socket = sock
        self._sending = threading.Lock()
        self._scans: dict[int, tuple[float, str, _Scan]] = {}
        self._scan_numbers = itertools.count(1)
        self._changed: set[str] = set()

    def run(self) -> None:
        """Reads requests; each runs in a thread. Raises WireError."""
        threading.Thread(target=self._maintain, daemon=True, name="maintenance").start()
        parser = Parser()
        with ThreadPoolExecutor(_THREADS, "request") as pool:
            while data := self._receive():
                for header, payload in parser.feed(data):
                    pool.submit(self._answer, decode_request(header), payload)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_READ_BYTES)
        except ConnectionError:
            return b""

    def _answer(self, request: Request, payload: bytes) -> None:
        numbers: _Vectors | None = None
        try:
            answer, numbers = self._carry_out(request, payload)
        except MultigrainError as error:
            field = error.violations[0].field if error.violations else ""
            answer = Failed(request.id, error.kind, error.message[:4000], field)
        except Exception as error:  # an unanswered request would wait forever
            exit_if_out_of_memory(error)
            _LOG.exception("%s failed", type(request).__name__)
            answer = Failed(request.id, ErrorKind.INTERNAL, "the index process failed: see its log")
        try:
            frame = encode(answer, b"" if numbers is None else _bytes(numbers))
        except WireError:
            frame = encode(
                Failed(
                    request.id,
                    ErrorKind.INVALID_FIELD,
                    "the answer is too large: ask for fewer items, or without vectors",
                )
            )
        with self._sending:
            try:
                self._socket.sendall(frame)
            except (BrokenPipeError, ConnectionResetError):
                return  # the reader notices it

    def _carry_out(self, request: Request, payload: bytes) -> tuple[Answer, _Vectors | None]:
        match request:
            case List():
                names, aliases = self._indexes.names(), self._indexes.aliases()
                return Listed(request.id, names, aliases), None
            case Create(manifest=manifest):
                return _opened(request.id, self._indexes.create(manifest)), None
            case DeleteIndex(index=name):
                self._indexes.delete(name)
                return Done(request.id), None
            case SetAlias(alias=alias, index=name):
                self._indexes.set_alias(alias, name)
                return Done(request.id), None
            case Next(scan=scan):
                return self._next(request.id, scan)
            case EndScan(scan=scan):
                self._scans.pop(scan, None)
                return Done(request.id), None
            case _:
                index = self._indexes.open(request.index)
                with storage_errors(index.manifest.name):
                    return self._use(request, index, payload)

    def _use(
        self, request: Request, index: OpenIndex, payload: bytes
    ) -> tuple[Answer, _Vectors | None]:
        """Carries out a request to one index."""
        number, size, store = request.id, index.manifest.size, index.store
        match request:
            case Open():
                return _opened(number, index), None
            case Add(items=items):
                self._change(index, lambda: index.store.add(items, _vectors(payload, size)))
                return Done(number, len(items), version=index.store.version), None
            case Update(changes=changes):
                missing = self._change(index, lambda: index.store.update(changes))
                return Done(number, ids=missing, version=index.store.version), None
            case Delete(chosen=doomed):
                count = self._change(index, lambda: index.store.delete(doomed))
                return Done(number, count, version=index.store.version), None
            case Count(chosen=chosen):
                return Done(number, store.count(chosen)), None
            case Get(ids=ids, with_vectors=with_vectors):
                found, vectors = store.get(ids, with_vectors)
                return Items(number, found), vectors
            case Search():
                return _search(request, index, payload)
            case Scan(chosen=chosen, rows=rows):
                return Done(number, self._begin(index, store.scan(chosen, rows))), None
            case _:
                raise MultigrainError(ErrorKind.INTERNAL, f"unexpected {type(request).__name__}")

    def _change(self, index: OpenIndex, change: Callable[[], T]) -> T:
        with index.writing:
            result = change()
        self._changed.add(index.manifest.name)
        return result

    def _begin(self, index: OpenIndex, scan: _Scan) -> int:
        now = time.monotonic()
        for number, (used, _, _) in list(self._scans.items()):
            if now - used > _SCAN_SECONDS or len(self._scans) >= _MAX_SCANS:
                self._scans.pop(number, None)
        number = next(self._scan_numbers)
        self._scans[number] = now, index.manifest.name, scan
        return number

    def _next(self, request: int, number: int) -> tuple[Answer, _Vectors | None]:
        found = self._scans.pop(number, None)
        if found is None:
            raise MultigrainError(
                ErrorKind.WRONG_STATE, "the scan has ended, as too many others began: start again"
            )
        _, name, scan = found
        with storage_errors(name):
            items, vectors = next(scan, ([], None))
        if items:
            self._scans[number] = time.monotonic(), name, scan
        return Items(request, items), vectors

    def _maintain(self) -> None:
        """Maintains changed indexes, one at a time, beside the requests."""
        while True:
            time.sleep(_MAINTENANCE_SECONDS)
            for name in list(self._changed):
                self._changed.discard(name)
                try:
                    self._indexes.open(name).maintain()
                except Exception as error:  # deleted, or the disk is full: requests say so
                    exit_if_out_of_memory(error)
                    _LOG.warning("maintenance of index %s failed: %s", name, error)


def _opened(number: int, index: OpenIndex) -> Opened:
    recall = getattr(index.store, "recall", None)
    return Opened(number, index.manifest, index.store.count(), index.store.version, recall)


def _search(request: Search, index: OpenIndex, payload: bytes) -> tuple[Answer, _Vectors | None]:
    found = index.store.search(
        _vectors(payload, index.manifest.size),
        request.k,
        chosen=request.chosen,
        effort=request.effort,
        with_vectors=request.with_vectors,
    )
    hits = [[(hit.item, hit.similarity) for hit in hits] for hits in found]
    vectors = [hit.vector for hits in found for hit in hits if hit.vector is not None]
    return Found(request.id, hits), np.stack(vectors) if vectors else None


def _vectors(payload: bytes, size: int) -> _Vectors:
    numbers = np.frombuffer(payload, "<f4")
    if len(numbers) % size:
        raise MultigrainError(ErrorKind.INTERNAL, f"{len(numbers)} numbers in vectors of {size}")
    return numbers.reshape(-1, size)


def _bytes(numbers: _Vectors) -> bytes:
    return np.ascontiguousarray(numbers, "<f4").tobytes()


def serve(folder: Path, sock: socket.socket) -> None:
    """Answers requests until the daemon closes the socket, then ends the process."""
    try:
        IndexProcess(folder, sock).run()
    except WireError as error:
        _LOG.error("protocol error: %s", error)
    # What was acknowledged is on the disk, and threads inside an engine must not delay the exit.
    sys.stderr.flush()
    os._exit(0)
