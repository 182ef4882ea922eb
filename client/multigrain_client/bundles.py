"""Uploads and downloads of model bundles as tar archives."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from multigrain.bundle.members import SIGNATURE_BYTES, compression
from multigrain.bundle.tar import BLOCK, is_header
from multigrain.files import open_regular, read_json
from multigrain.v1.model_pb2 import ImportModelRequest
from multigrain_client.errors import InvalidRequest
from multigrain_client.json_format import fill
from multigrain_client.local_files import descriptor_of

CHUNK = 1024 * 1024
_MANIFEST = "model.json"


def import_requests(
    path: str | os.PathLike[str], *, name: str, version: int
) -> Iterator[ImportModelRequest]:
    """The start message, then the archive in chunks.

    Args:
        path: a bundle's folder, of which model.json and the files that it lists are sent; or a tar
            of it, which is sent as it is. An open pipe (/dev/stdin, /dev/fd/63) is read to its
            end first.
        name: name in the registry; empty = the name in the bundle.
        version: 0 = the next free one.

    Raises:
        InvalidRequest: if it is neither, or cannot be read; for an invalid name or version.
    """
    if not os.fspath(path):
        raise InvalidRequest("cannot import: the path is empty")  # it would be "."
    source = Path(path)
    try:
        if source.is_dir():
            with tempfile.TemporaryFile() as archive:
                _pack(source, archive)
                yield from _requests(archive, name, version)
        else:
            with _opened(source) as archive:
                packed = compression(archive.read(SIGNATURE_BYTES))
                archive.seek(0)
                if packed:
                    raise InvalidRequest(f"{source} cannot be imported: {packed}")
                if source.name == _MANIFEST:
                    raise InvalidRequest(
                        f"{source} is a part of a model bundle: import its folder {source.parent}"
                    )
                first = archive.read(BLOCK)
                if not is_header(first) and first != bytes(BLOCK):  # the end: an empty archive
                    raise InvalidRequest(
                        f"{source} is not a model bundle (a folder or an uncompressed tar of it); "
                        "to make one from a weights file, export it (checkpoint_path)"
                    )
                yield from _requests(archive, name, version)
    except OSError as error:
        where = error.filename if error.filename is not None else source
        raise InvalidRequest(f"cannot read {where}: {error.strerror or error}") from error


def _opened(source: Path) -> BinaryIO:
    """The archive; a copy of it if the source is an open pipe, such as /dev/stdin.

    Raises:
        OSError: if it is neither such a pipe nor a regular file.
        InvalidRequest: if what comes from the pipe is no archive.
    """
    descriptor = descriptor_of(source)
    if descriptor is None or not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return open_regular(source)
    with os.fdopen(os.dup(descriptor), "rb") as pipe:
        head = pipe.read(BLOCK)
        # Before the rest, which may never end.
        if packed := compression(head):
            raise InvalidRequest(f"{source} cannot be imported: {packed}")
        if not is_header(head):
            raise InvalidRequest(f"{source} gives no uncompressed tar archive of a model bundle")
        archive = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        archive.write(head)
        shutil.copyfileobj(pipe, archive, CHUNK)
    archive.seek(0)
    return cast(BinaryIO, archive)


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
    """Packs the manifest and the files that it lists; what else is in the folder stays there."""
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in (_MANIFEST, *_listed(folder)):
            file = folder / name
            if file.is_symlink():
                raise InvalidRequest(
                    f"{file} is a link, which is not followed: put a copy of the file there"
                )
            if not file.is_file():
                raise InvalidRequest(f"{file} is missing: {_MANIFEST} lists it")
            tar.add(file, arcname=name, recursive=False)


def _listed(folder: Path) -> list[str]:
    """The names of the files in a bundle's manifest."""
    if not (folder / _MANIFEST).is_file():
        inside = sorted(found.parent.name for found in folder.glob(f"*/{_MANIFEST}"))
        hint = f"; did you mean {folder / inside[0]}?" if inside else ""
        raise InvalidRequest(f"{folder} is not a model bundle: it has no {_MANIFEST}{hint}")
    try:
        manifest = read_json(folder / _MANIFEST)
    except ValueError as error:
        raise InvalidRequest(f"{folder / _MANIFEST} is not valid JSON: {error}") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    # What is wrong with the rest of it, the server says.
    names = sorted(files) if isinstance(files, dict) else []
    for name in names:
        if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise InvalidRequest(f"{folder / _MANIFEST} lists {name!r}: not a file of the folder")
    return names
