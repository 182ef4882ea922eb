"""Uploads and downloads of model bundles as tar archives."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from multigrain.v1.model_pb2 import DownloadModelResponse, ImportModelRequest
from multigrain_client.errors import InvalidRequest, ServerError
from multigrain_client.json_format import fill
from multigrain_client.output_file import OutputFile

CHUNK = 1024 * 1024


def import_requests(
    path: str | os.PathLike[str], *, name: str, version: int
) -> Iterator[ImportModelRequest]:
    """The start message, then the archive in chunks. ``path`` is a bundle's folder or a tar of it.

    Raises:
        InvalidRequest: if it is neither, or cannot be read; for an invalid name or version.
    """
    source = Path(path)
    try:
        if source.is_dir():
            if not (source / "model.json").is_file():
                raise InvalidRequest(f"{source} is not a model bundle: it has no model.json")
            with tempfile.TemporaryFile() as archive:
                _pack(source, archive)
                yield from _requests(archive, name, version)
        else:
            with source.open("rb") as archive:
                if not tarfile.is_tarfile(archive):
                    raise InvalidRequest(
                        f"{source} is not a model bundle (a folder or an uncompressed tar of it); "
                        "to make one from a weights file, export it (checkpoint_path)"
                    )
                yield from _requests(archive, name, version)
    except OSError as error:
        raise InvalidRequest(f"cannot read {source}: {error.strerror or error}") from error


def _requests(archive: BinaryIO, name: str, version: int) -> Iterator[ImportModelRequest]:
    archive.seek(0)
    digest = hashlib.sha256()
    while chunk := archive.read(CHUNK):
        digest.update(chunk)
    archive.seek(0)
    start = ImportModelRequest.Start(sha256=digest.hexdigest())
    fill(start, {"name": name, "version": version}, "start")
    yield ImportModelRequest(start=start)
    while chunk := archive.read(CHUNK):
        yield ImportModelRequest(chunk=chunk)


def _pack(folder: Path, archive: BinaryIO) -> None:
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and not file.is_symlink():
                tar.add(file, arcname=file.relative_to(folder).as_posix(), recursive=False)


class BundleWriter:
    """Writes a downloaded archive, which appears under its name when it is complete.

    A context manager that removes the temporary file unless ``finish`` was called.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = OutputFile(path)
        self._digest = hashlib.sha256()
        self._expected = ""
        self._total = 0
        self._size = 0

    def __enter__(self) -> BundleWriter:
        self._file.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.discard()

    def write(self, message: DownloadModelResponse) -> None:
        self._file.stream.write(message.chunk)
        self._digest.update(message.chunk)
        self._size += len(message.chunk)
        self._total = message.total_bytes or self._total
        self._expected = message.sha256 or self._expected

    def finish(self) -> Path:
        """Checks size and SHA-256 and renames the archive to its final name.

        Raises:
            ServerError: if the archive does not match what the server announced.
        """
        if self._total and self._size != self._total:
            raise ServerError(f"received {self._size} of {self._total} bytes of the bundle")
        if not self._expected or self._digest.hexdigest() != self._expected:
            raise ServerError(
                "the received bundle is damaged: its SHA-256 does not match the server's"
            )
        return self._file.finish()
