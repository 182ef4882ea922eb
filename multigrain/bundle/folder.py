"""Reads and writes model bundles, as folders and as untrusted tar archives."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from multigrain.bundle.manifest import MANIFEST_NAME, MAX_FILES, BundleManifest
from multigrain.bundle.members import SIGNATURE_BYTES, compression, is_passed_over, is_plain
from multigrain.bundle.tar import Entry, TarError, end, entries, header, padding
from multigrain.errors import ErrorKind, FieldViolation, MultigrainError
from multigrain.files import MAX_DOCUMENT_BYTES, open_regular, read_bytes
from multigrain.storage import FileEntry, sync_folder, write_synced

# For the daemon's user only, although libraries write some files with other modes.
FILE_MODE = 0o600
# In an archive, which has no owner.
_ARCHIVE_MODE = 0o644
# With the folders and hidden files around them.
_MAX_ENTRIES = 512
_CHUNK = 1 << 20


def read(path: Path, *, verify: bool = False) -> BundleManifest:
    """Reads the manifest of a bundle.

    Args:
        path: the bundle's folder.
        verify: also check the size and checksum of every file.

    Raises:
        MultigrainError: CHECKPOINT, with the problem.
    """
    try:
        data = read_bytes(path / MANIFEST_NAME, max_bytes=MAX_DOCUMENT_BYTES)
    except FileNotFoundError as error:
        raise _damaged(f"it has no {MANIFEST_NAME}") from error
    except OSError as error:
        raise _damaged(f"its {MANIFEST_NAME} cannot be read: {error.strerror}") from error
    manifest = _parsed(data)
    if verify:
        for name in manifest.files:
            for _ in _blocks(path, manifest, name):
                pass
    return manifest


def _parsed(data: bytes) -> BundleManifest:
    try:
        manifest = BundleManifest.parse(data)
    except ValueError as error:
        raise _damaged(f"its {MANIFEST_NAME} is invalid: {error}") from error
    if manifest.format_version != 1:
        raise _damaged(f"its format is version {manifest.format_version}, this version supports 1")
    for name in manifest.files:
        _plain(name)
    if MANIFEST_NAME in manifest.files:
        raise _damaged(f"its {MANIFEST_NAME} lists itself")
    missing = sorted(set(_named(manifest)) - set(manifest.files))
    if missing:
        raise _damaged(f"{missing[0]} is not listed in its {MANIFEST_NAME}")
    return manifest


def read_file(path: Path, manifest: BundleManifest, name: str) -> bytes:
    """Reads a file of a bundle and checks it against the manifest.

    Args:
        path: the bundle's folder.
        manifest: its manifest.
        name: of the file.

    Raises:
        MultigrainError: CHECKPOINT, if the manifest does not list the file, or if the file is not
            what was written.
    """
    return b"".join(_blocks(path, manifest, name))


def check_files(path: Path, manifest: BundleManifest) -> None:
    """Checks that the files that a manifest lists are there, regular and of its sizes.

    For a reader of a bundle whose checksums have been verified before.

    Raises:
        MultigrainError: CHECKPOINT.
    """
    for name, entry in manifest.files.items():
        with _opened(path, name) as file:
            _check_size(name, os.fstat(file.fileno()).st_size, entry)


def write_manifest(path: Path, manifest: BundleManifest) -> None:
    """Writes ``model.json`` durably. It must be the last file of a bundle that is written."""
    write_synced(path / MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
    (path / MANIFEST_NAME).chmod(FILE_MODE)
    sync_folder(path)


class TarSource:
    """A bundle as an uncompressed tar archive: the manifest first, then its files.

    Owners, times and modes are constant: equal bundles give equal archives. A context manager that
    closes the files; they are all open from the beginning, so that the bundle may be deleted
    meanwhile.

    Args:
        path: the bundle's folder.

    Raises:
        MultigrainError: CHECKPOINT if the bundle has no manifest, lacks a file, or has one of
            another size.

    Attributes:
        size: of the archive in bytes.
    """

    def __init__(self, path: Path) -> None:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(_opened(path, MANIFEST_NAME))
            self._head = first.read(MAX_DOCUMENT_BYTES + 1)
            self._manifest = _parsed(self._head)
            self._files = {
                name: stack.enter_context(_opened(path, name))
                for name in sorted(self._manifest.files)
            }
            for name, entry in self._manifest.files.items():
                _check_size(name, os.fstat(self._files[name].fileno()).st_size, entry)
            self._stack = stack.pop_all()
        sizes = {MANIFEST_NAME: len(self._head)}
        sizes |= {name: entry.bytes for name, entry in self._manifest.files.items()}
        length = sum(
            len(header(name, size, _ARCHIVE_MODE)) + size + len(padding(size))
            for name, size in sizes.items()
        )
        self._end = end(length)
        self.size = length + len(self._end)

    def __enter__(self) -> TarSource:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def chunks(self, size: int) -> Iterator[bytes]:
        """The archive in pieces of this size; the last one may be smaller. To be read once.

        Raises:
            MultigrainError: CHECKPOINT, at the end of a file that does not match its checksum.
        """
        waiting = bytearray()
        for piece in self._pieces(size):
            waiting += piece
            while len(waiting) >= size:
                yield bytes(waiting[:size])
                del waiting[:size]
        if waiting:
            yield bytes(waiting)

    def _pieces(self, size: int) -> Iterator[bytes]:
        yield header(MANIFEST_NAME, len(self._head), _ARCHIVE_MODE)
        yield self._head
        yield padding(len(self._head))
        for name, file in self._files.items():
            entry = self._manifest.files[name]
            yield header(name, entry.bytes, _ARCHIVE_MODE)
            yield from _verified(name, file, entry, size)
            yield padding(entry.bytes)
        yield self._end


def unpack_tar(archive: BinaryIO, path: Path, *, max_bytes: int) -> None:
    """Unpacks an untrusted archive of a bundle's files.

    Accepts only regular files, at the top or all in the folder with ``model.json``. No links,
    devices, sparse files, other folders, duplicate names or compression. Files and folders that
    are hidden or of a system (.DS_Store, __MACOSX) are passed over. Modes and owners are ignored.

    Args:
        archive: an uncompressed tar archive.
        path: destination folder; created if missing. Existing files are not overwritten.
        max_bytes: limit of the total size of the files.

    Raises:
        MultigrainError: INVALID_FIELD (field "chunk") if the archive is refused; the caller must
            remove the files that were unpacked before. STORAGE if the disk is full.
    """
    path.mkdir(parents=True, exist_ok=True)
    try:
        start = archive.tell()
        head = archive.read(SIGNATURE_BYTES)
        archive.seek(start)
        wanted = _wanted(_members(archive), max_bytes)
        total = sum(member.size for member in wanted.values())
        if total > shutil.disk_usage(path).free:
            raise MultigrainError(
                ErrorKind.STORAGE,
                f"the archive cannot be unpacked: its files need {total} bytes, and the disk has "
                "fewer left; free up disk space in the data directory",
            )
        for name, member in wanted.items():
            _extract(archive, member, path / name)
    except TarError as error:
        raise _refused(compression(head) or str(error)) from error
    except FileExistsError as error:
        raise _refused("one of its files exists already") from error
    except OSError as error:
        raise MultigrainError(
            ErrorKind.STORAGE, f"the archive cannot be unpacked: {error.strerror}"
        ) from error
    if MANIFEST_NAME not in wanted:
        raise _refused(
            f"it has no {MANIFEST_NAME}; pack a bundle's folder (tar cf BUNDLE.tar FOLDER) or its "
            "files"
        )


def _wanted(members: Sequence[Entry], max_bytes: int) -> dict[str, Entry]:
    """The files to unpack, by name."""
    top = _top_folder(members)
    left, wanted = max_bytes, dict[str, Entry]()
    for member in members:
        if member.kind == "folder" and f"{top}/".startswith(f"{_path(member)}/".lstrip("/")):
            continue  # "tar -c ." and "tar -c FOLDER" begin with the folder itself
        name = _member_name(member, top)
        left -= member.size
        if left < 0:
            raise _refused(f"its files are larger than {max_bytes} bytes")
        if name in wanted:
            raise _refused(f"it has {name!r} twice")
        wanted[name] = member
        if len(wanted) > MAX_FILES:
            raise _refused(f"it has more than {MAX_FILES} files")
    return wanted


def _members(archive: BinaryIO) -> list[Entry]:
    """The entries that are not passed over."""
    found = []
    for member in entries(archive, max_entries=_MAX_ENTRIES):
        if member.name.startswith("/"):
            raise _refused(
                f"{member.name[:100]!r} is not a plain file name but an absolute path; pack "
                "the bundle's folder with relative ones (tar -C FOLDER -cf BUNDLE.tar .)"
            )
        if is_passed_over(member.name):
            continue
        if "\\" in member.name:
            raise _refused(
                f"{member.name[:100]!r} is not a plain file name: it has a backslash, "
                "the separator of Windows; pack its folder with GNU tar or bsdtar"
            )
        found.append(member)
    return found


def _top_folder(members: Sequence[Entry]) -> str:
    """The folder with the manifest and so with all files; "" = the archive's top."""
    manifests = [
        folder
        for folder, _, name in (_path(member).rpartition("/") for member in members)
        if name == MANIFEST_NAME and ".." not in folder.split("/")
    ]
    return "" if not manifests or "" in manifests else manifests[0]


def _path(member: Entry) -> str:
    """The path of an entry without a leading "./"."""
    name = member.name
    while name.startswith("./"):
        name = name.removeprefix("./")
    return "" if name == "." else name


def _named(manifest: BundleManifest) -> Iterator[str]:
    """The files that a manifest names and must list. The weights may be missing as a whole."""
    for head in manifest.heads:
        yield from head.named_files


def _opened(path: Path, name: str) -> BinaryIO:
    """A file of a bundle's folder, and no link. Raises MultigrainError CHECKPOINT."""
    file = path / _plain(name)
    try:
        if file.is_symlink():
            raise _damaged(f"{name} is a link, not a regular file")
        return open_regular(file, (path,))
    except FileNotFoundError as error:
        raise _damaged(f"{name} is missing") from error
    except OSError as error:
        raise _damaged(f"{name} cannot be read: {error.strerror}") from error


def _check_size(name: str, size: int, entry: FileEntry) -> None:
    if size != entry.bytes:
        raise _damaged(
            f"{name} has {size} bytes and does not match its checksum, which is of {entry.bytes}"
        )


def _verified(name: str, file: BinaryIO, entry: FileEntry, size: int) -> Iterator[bytes]:
    """The content of an open file in blocks of at most ``size`` bytes.

    Raises:
        MultigrainError: CHECKPOINT, at its end, if it is not what was written.
    """
    digest, left = hashlib.sha256(), entry.bytes
    try:
        while block := file.read(min(size, left)):
            digest.update(block)
            left -= len(block)
            yield block
    except OSError as error:
        raise _damaged(f"{name} cannot be read: {error.strerror}") from error
    if left or digest.hexdigest() != entry.sha256:
        raise _damaged(f"{name} does not match its checksum")


def _blocks(path: Path, manifest: BundleManifest, name: str) -> Iterator[bytes]:
    """The content of a file of the manifest, verified as in :func:`_verified`."""
    entry = manifest.files.get(name)
    if entry is None:
        raise _damaged(f"{name} is not listed in its {MANIFEST_NAME}")
    with _opened(path, name) as file:
        _check_size(name, os.fstat(file.fileno()).st_size, entry)
        yield from _verified(name, file, entry, _CHUNK)


def _plain(name: str) -> str:
    """The name, if it is a file name without a path."""
    if not is_plain(name):
        raise _damaged(f"{name[:100]!r} is not a plain file name")
    return name


def _member_name(member: Entry, top: str) -> str:
    if not member.is_file:
        raise _refused(f"{member.name[:100]!r} is a {member.kind} and not a regular file")
    folder, _, name = _path(member).rpartition("/")
    try:
        if folder != top:
            raise _damaged("it has folders")
        return _plain(name)
    except MultigrainError:
        raise _refused(
            f"{member.name[:100]!r} is not a plain file name"
            + (f" in {top!r}, the folder with {MANIFEST_NAME}" if top else "")
            + "; a bundle has no folders: pack its folder alone"
        ) from None


def _extract(archive: BinaryIO, member: Entry, target: Path) -> None:
    archive.seek(member.offset)
    left = member.size
    with target.open("xb") as file:
        while left:
            chunk = archive.read(min(_CHUNK, left))
            if not chunk:
                raise _refused("it is truncated")
            file.write(chunk)
            left -= len(chunk)
    target.chmod(FILE_MODE)


def _damaged(what: str) -> MultigrainError:
    return MultigrainError(
        ErrorKind.CHECKPOINT, f"the model bundle cannot be used: {what}. Export or import it again"
    )


def _refused(what: str) -> MultigrainError:
    return refused_archive(f"the archive is refused: {what}")


def refused_archive(message: str) -> MultigrainError:
    """An INVALID_FIELD error of an uploaded archive.

    Its message does not name the field: "chunk" means nothing to the caller of a client.
    """
    violation = FieldViolation("chunk", message)
    return MultigrainError(ErrorKind.INVALID_FIELD, message, violations=(violation,))
