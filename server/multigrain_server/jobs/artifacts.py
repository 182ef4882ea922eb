"""The files of a job that clients may read: results, logs and checkpoints.

Whoever runs code in a job, or writes in its folder, may put links there. Nothing outside of the
job's folder is opened; see ``multigrain.files``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import AsyncGenerator, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import NotRegularError, OutsideRootsError, open_folder, open_regular
from multigrain.jobs.job_folder import JobFolder
from multigrain.text import is_text
from multigrain_server.asyncio_utils import to_thread_uncancellable
from multigrain_server.storage_errors import storage_errors

MAX_ARTIFACTS = 10_000
"""Most files in one listing."""

_CHUNK = 1 << 20
_MAX_DEPTH = 4
_MAX_NAME = 1024


class ArtifactKind(StrEnum):
    """Names of ``multigrain.v1.ArtifactKind`` without their prefix."""

    RESULT = "RESULT"
    LOG = "LOG"
    CHECKPOINT = "CHECKPOINT"


@dataclass(frozen=True)
class Artifact:
    """A file of a job.

    Attributes:
        name: path below the job's folder.
        kind: what it is.
        size: bytes.
        modified: seconds since the epoch.
    """

    name: str
    kind: ArtifactKind
    size: int
    modified: float


def _folders(job: JobFolder) -> dict[str, ArtifactKind]:
    """The folders below a job's that hold artifacts."""
    return {
        job.checkpoints.name: ArtifactKind.CHECKPOINT,
        job.results.name: ArtifactKind.RESULT,
        job.logs.name: ArtifactKind.LOG,
    }


def list_artifacts(job: JobFolder, kinds: Collection[ArtifactKind] = ()) -> list[Artifact]:
    """The files of a job in the order of their names, at most MAX_ARTIFACTS. Reads the disk.

    Args:
        job: its folder.
        kinds: which; empty = all.

    Raises:
        MultigrainError: STORAGE.
    """
    found: list[Artifact] = []
    with storage_errors("the job's files cannot be listed", "the job's folder"):
        for folder, kind in _folders(job).items():
            if not kinds or kind in kinds:
                found += _walk(job.path, folder, kind, MAX_ARTIFACTS - len(found))
    return sorted(found, key=lambda artifact: artifact.name)


def _walk(root: Path, folder: str, kind: ArtifactKind, most: int) -> list[Artifact]:
    """The regular files below a folder; links, and names that are no text, are left out."""
    found: list[Artifact] = []
    pending = [folder]
    while pending:
        below = pending.pop()
        try:
            descriptor = open_folder(root / below, [root])
        except (FileNotFoundError, NotADirectoryError, OutsideRootsError):
            continue  # not written yet, removed meanwhile, or not ours
        try:
            for name, status in _entries(descriptor):
                path = f"{below}/{name}"
                if stat.S_ISDIR(status.st_mode) and path.count("/") < _MAX_DEPTH:
                    pending.append(path)
                elif stat.S_ISREG(status.st_mode):
                    if len(found) == most:
                        return found
                    found.append(Artifact(path, kind, status.st_size, status.st_mtime))
        finally:
            os.close(descriptor)
    return found


def _entries(descriptor: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(descriptor) as entries:
        for entry in entries:
            # Temporary files begin with a dot.
            if entry.name.startswith(".") or not is_text(entry.name):
                continue
            try:
                yield entry.name, entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # removed meanwhile
                continue


def open_artifact(job: JobFolder, name: str) -> BinaryIO:
    """Opens a file of a job for reading.

    Args:
        job: its folder.
        name: path below it, as in ``Artifact``.

    Raises:
        MultigrainError: INVALID_FIELD, if it is no name of an artifact; NOT_FOUND; STORAGE.
    """
    parts = name.split("/")
    if (
        len(name) > _MAX_NAME
        or len(parts) < 2
        or parts[0] not in _folders(job)
        or any(part.startswith(".") or not part for part in parts)
        or "\0" in name
        or not is_text(name)
    ):
        known = ", ".join(f"{folder}/" for folder in _folders(job))
        raise MultigrainError.field(
            "name",
            f"{name[:200]!r} is not the name of a file below {known}; ListArtifacts has the names",
        )
    try:
        return open_regular(job.path / name, [job.path])
    except OSError as error:
        absent = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EISDIR)
        if error.errno in absent or isinstance(error, (NotRegularError, OutsideRootsError)):
            raise MultigrainError(
                ErrorKind.NOT_FOUND,
                f"job {job.job_id} has no file {name}; ListArtifacts has the names",
            ) from error
        with storage_errors(f"{name} cannot be read", "the job's folder"):
            raise


class ArtifactReader:
    """A file of a job that is being sent.

    Args:
        file: it, open; closed by the caller.
        name: of the file, for messages.
        offset: bytes that are left out at its beginning.

    Attributes:
        size: of the whole file when it was opened.
        sha256: of the chunks, once :meth:`chunks` has ended.

    Raises:
        MultigrainError: INVALID_FIELD, if the offset is beyond the end.
    """

    def __init__(self, file: BinaryIO, name: str, offset: int = 0) -> None:
        self._file = file
        self._name = name
        self.size = os.fstat(file.fileno()).st_size
        self.sha256 = ""
        if offset > self.size:
            raise MultigrainError.field(
                "offset", f"{offset} is beyond the {self.size} bytes of {name}"
            )
        self._left = self.size - offset
        file.seek(offset)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Pieces of at most 1 MiB, each read in a thread when it is needed.

        Raises:
            MultigrainError: STORAGE.
        """
        digest = hashlib.sha256()

        def following() -> bytes:
            with storage_errors(f"{self._name} cannot be read", "the job's folder"):
                piece = self._file.read(min(_CHUNK, self._left))
            digest.update(piece)
            return piece

        # Of a file that was cut off meanwhile, what there is.
        while self._left and (piece := await to_thread_uncancellable(following)):
            self._left -= len(piece)
            yield piece
        self.sha256 = digest.hexdigest()
