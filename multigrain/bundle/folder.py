"""Reads and writes model bundles, as folders and as untrusted tar archives."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from multigrain.bundle.manifest import MANIFEST_NAME, BundleManifest
from multigrain.bundle.members import SIGNATURE_BYTES, compression, is_passed_over
from multigrain.errors import ErrorKind, FieldViolation, MultigrainError
from multigrain.storage import FileEntry, describe, sync_folder, write_synced

FILE_MODE = 0o644
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
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in (MANIFEST_NAME, *sorted(manifest.files)):
            member = tarfile.TarInfo(_plain(name))
            member.mode = FILE_MODE
            try:
                with (path / name).open("rb") as file:
                    member.size = (path / name).stat().st_size
                    tar.addfile(member, file)
            except FileNotFoundError as error:
                raise _damaged(f"{name} is missing") from error


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
        # "r:" and not "r": a compressed archive could unfold to any size.
        with tarfile.open(fileobj=_ShortReads(archive), mode="r:") as tar:
            members = _members(tar)
            top = _top_folder(members)
            for member in members:
                if member.isdir() and f"{top}/".startswith(f"{_path(member)}/".lstrip("/")):
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
                _extract(tar, member, path / name)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        why = compression(head) or "it is not a complete, uncompressed tar archive"
        raise _refused(why) from error
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


class _ShortReads(io.RawIOBase):
    """The archive, for tarfile, which reads a long name or a pax header at once, whatever its size.

    Args:
        archive: the archive.
    """

    def __init__(self, archive: BinaryIO) -> None:
        self._archive = archive

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._archive.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._archive.seek(offset, whence)

    def tell(self) -> int:
        return self._archive.tell()

    def seekable(self) -> bool:
        return True


def _members(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """The entries that are not passed over."""
    found = []
    for number, member in enumerate(tar):
        if number >= _MAX_ENTRIES:
            raise _refused(f"it has more than {_MAX_ENTRIES} entries")
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


def _top_folder(members: Sequence[tarfile.TarInfo]) -> str:
    """The folder with the manifest and so with all files; "" = the archive's top."""
    manifests = [
        folder
        for folder, _, name in (_path(member).rpartition("/") for member in members)
        if name == MANIFEST_NAME and ".." not in folder.split("/")
    ]
    return "" if not manifests or "" in manifests else manifests[0]


def _path(member: tarfile.TarInfo) -> str:
    """The path of an entry without a leading "./" or a trailing "/"."""
    name = member.name
    while name.startswith("./"):
        name = name.removeprefix("./")
    return "" if name == "." else name.rstrip("/")


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
    if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
        raise _damaged(f"{name!r} is not a plain file name")
    return name


def _member_name(member: tarfile.TarInfo, top: str) -> str:
    # isreg() would accept sparse files, which can be larger than the archive.
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
        raise _refused(f"{member.name[:100]!r} is {_kind(member)} and not a regular file")
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


def _kind(member: tarfile.TarInfo) -> str:
    if member.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        return "a link"
    if member.isdir():
        return "a folder"
    return "a sparse file" if member.sparse is not None else "a special file"


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    if source is None:  # never for a regular file
        raise _refused(f"{member.name[:100]!r} cannot be read")
    left = member.size
    with target.open("xb") as file:
        while left:
            chunk = source.read(min(_CHUNK, left))
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
