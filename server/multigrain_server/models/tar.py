"""Bundles as tar archives. What comes in is not trusted."""

from __future__ import annotations

import errno
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from pydantic import ValidationError

from multigrain.bundle.manifest import MANIFEST_NAME, BundleManifest
from multigrain.errors import ErrorKind, MultigrainError

_MAX_FILES = 1000
_MAX_MANIFEST_BYTES = 64 * 1024 * 1024


def write_tar(folder: Path, manifest: BundleManifest, out: BinaryIO) -> None:
    """Writes the manifest and the files that it names; the same bundle gives the same bytes."""
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in (MANIFEST_NAME, *sorted(manifest.files)):
            path = folder / name
            info = tarfile.TarInfo(name)
            info.size = path.stat().st_size
            info.mode = 0o644
            with path.open("rb") as file:
                archive.addfile(info, file)


def unpack_tar(source: BinaryIO, folder: Path, max_bytes: int) -> BundleManifest:
    """Unpacks an archive of a bundle into a new ``folder``, and reads its manifest.

    Only regular files below the folder are accepted: no links, devices, absolute names or
    "..". Files that the manifest does not name are left out.

    Raises:
        MultigrainError: INVALID_FIELD on ``chunk``: not such an archive.
    """
    folder.mkdir()
    try:
        with tarfile.open(fileobj=source, mode="r:") as archive:
            _unpack_members(archive, folder, max_bytes)
    except tarfile.TarError as error:
        raise _refused(f"is not a tar archive, or is cut short ({error})") from error
    manifest = _read_manifest(folder / MANIFEST_NAME)
    missing = [name for name in manifest.files if not (folder / name).is_file()]
    if missing:
        raise _refused(f"lacks {missing[0]}, which {MANIFEST_NAME} names")
    named = {folder / name for name in (MANIFEST_NAME, *manifest.files)}
    for path in folder.rglob("*"):
        if path.is_file() and path not in named:
            path.unlink()
    return manifest


def _unpack_members(archive: tarfile.TarFile, folder: Path, max_bytes: int) -> None:
    total = 0
    for count, member in enumerate(archive, 1):
        if count > _MAX_FILES:
            raise _refused(f"has more than {_MAX_FILES} entries")
        if member.isdir():
            continue
        name = PurePosixPath(member.name)
        if not member.isreg():
            raise _refused(f"has {member.name[:100]!r}, which is not a regular file")
        if name.is_absolute() or ".." in name.parts or "\\" in member.name or not name.parts:
            raise _refused(f"has {member.name[:100]!r}, a name outside the bundle")
        total += member.size
        if total > max_bytes:
            raise _refused(f"unpacks to more than {max_bytes} bytes")
        content = archive.extractfile(member)
        assert content is not None  # regular files have one
        with content:
            _store(content, folder / name, member.name[:100])


def _store(content: IO[bytes], target: Path, name: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            shutil.copyfileobj(content, file)
    except FileExistsError:
        raise _refused(f"has {name!r} twice") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = "there is no room on the server's disk for the bundle"
            raise MultigrainError(ErrorKind.STORAGE, message) from error
        raise _refused(f"has {name!r}, which cannot be stored ({error.strerror})") from error


def _read_manifest(path: Path) -> BundleManifest:
    if not path.is_file() or path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise _refused(f"has no {MANIFEST_NAME} at its top: pack the bundle's files themselves")
    try:
        manifest = BundleManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _refused(f"has a {MANIFEST_NAME} that is wrong at {where}: {first['msg']}") from error
    used = {
        manifest.weights,
        *(name for head in manifest.heads for name in (head.onnx, head.mindir)),
    }
    for name in sorted(used - {""}):
        if name not in manifest.files and (path.parent / name).exists():
            raise _refused(f"has {name}, whose SHA-256 {MANIFEST_NAME} does not state")
    for name in manifest.files:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or name == MANIFEST_NAME:
            raise _refused(f"names {name[:100]!r} in {MANIFEST_NAME}, which is outside the bundle")
    return manifest


def _refused(why: str) -> MultigrainError:
    return MultigrainError.field("chunk", f"the archive {why}")
