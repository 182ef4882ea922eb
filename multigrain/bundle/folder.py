"""Reads and writes model bundles, as folders and as untrusted tar archives."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from multigrain.bundle.manifest import MANIFEST_NAME, BundleManifest
from multigrain.bundle.members import SIGNATURE_BYTES, compression, is_passed_over, is_plain
from multigrain.bundle.tar import Entry, TarError, end, entries, header, padding
from multigrain.errors import ErrorKind, FieldViolation, MultigrainError
from multigrain.storage import FileEntry, describe, sync_folder, write_synced

# For the daemon's user only, although libraries write some files with other modes.
FILE_MODE = 0o600
_MAX_FILES = 64
# With the folders and hidden files around them.
_MAX_ENTRIES = 512
_MAX_MANIFEST = 16 * 2**20
_CHUNK = 1 << 20


def read(path: Path, *, verify: bool = False) -> BundleManifest:
    """Reads the manifest of a bundle.

    Args:
        path: the bundle's folder.
        verify: also check the size and checksum of every file.

    Raises:
        MultigrainError: CHECKPOINT, with the problem.
    """
    source = path / MANIFEST_NAME
    try:
        if source.stat().st_size > _MAX_MANIFEST:
            raise _damaged(f"its {MANIFEST_NAME} is larger than {_MAX_MANIFEST} bytes")
        manifest = BundleManifest.model_validate_json(source.read_bytes())
    except FileNotFoundError as error:
        raise _damaged(f"it has no {MANIFEST_NAME}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "content"
        raise _damaged(f"its {MANIFEST_NAME} is invalid: {where}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise _damaged(f"its {MANIFEST_NAME} cannot be read") from error
    if manifest.format_version != 1:
        raise _damaged(f"its format is version {manifest.format_version}, this version supports 1")
    if verify:
        _verify(path, manifest)
    return manifest


def write_manifest(path: Path, manifest: BundleManifest) -> None:
    """Writes ``model.json`` durably. It must be the last file of a bundle that is written."""
    write_synced(path / MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
    (path / MANIFEST_NAME).chmod(FILE_MODE)
    sync_folder(path)


def write_tar(path: Path, archive: BinaryIO) -> None:
    """Writes a bundle as an uncompressed tar archive: the manifest first, then its files.

    Owners, times and modes are constant: equal bundles give equal archives.

    Raises:
        MultigrainError: CHECKPOINT if the bundle has no manifest or lacks a file.
    """
    manifest = read(path)
    size = 0
    for name in (MANIFEST_NAME, *sorted(manifest.files)):
        try:
            with (path / _plain(name)).open("rb") as file:
                bytes_ = os.fstat(file.fileno()).st_size
                size += archive.write(header(name, bytes_, FILE_MODE))
                shutil.copyfileobj(file, archive, _CHUNK)
                size += bytes_ + archive.write(padding(bytes_))
        except FileNotFoundError as error:
            raise _damaged(f"{name} is missing") from error
    archive.write(end(size))


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
    left, names = max_bytes, set[str]()
    try:
        start = archive.tell()
        head = archive.read(SIGNATURE_BYTES)
        archive.seek(start)
        members = _members(archive)
        top = _top_folder(members)
        for member in members:
            if member.kind == "folder" and f"{top}/".startswith(f"{_path(member)}/".lstrip("/")):
                continue  # "tar -c ." and "tar -c FOLDER" begin with the folder itself
            name = _member_name(member, top)
            left -= member.size
            if left < 0:
                raise _refused(f"its files are larger than {max_bytes} bytes")
            if name in names:
                raise _refused(f"it has {name!r} twice")
            names.add(name)
            if len(names) > _MAX_FILES:
                raise _refused(f"it has more than {_MAX_FILES} files")
            _extract(archive, member, path / name)
    except TarError as error:
        raise _refused(compression(head) or str(error)) from error
    except FileExistsError as error:
        raise _refused("one of its files exists already") from error
    except OSError as error:
        raise MultigrainError(
            ErrorKind.STORAGE, f"the archive cannot be unpacked: {error.strerror}"
        ) from error
    if MANIFEST_NAME not in names:
        raise _refused(
            f"it has no {MANIFEST_NAME}; pack a bundle's folder (tar cf BUNDLE.tar FOLDER) or its "
            "files"
        )


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


def _verify(path: Path, manifest: BundleManifest) -> None:
    named = {name for head in manifest.heads for name in head.named_files}
    missing = sorted(named - set(manifest.files))
    if missing:
        raise _damaged(f"{missing[0]} is not listed in its {MANIFEST_NAME}")
    for name, entry in manifest.files.items():
        _check_file(path / _plain(name), entry)


def _check_file(file: Path, entry: FileEntry) -> None:
    if file.is_symlink() or not file.is_file():
        raise _damaged(f"{file.name} is missing or not a regular file")
    if file.stat().st_size != entry.bytes or describe(file) != entry:
        raise _damaged(f"{file.name} does not match its checksum")


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
