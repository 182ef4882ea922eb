"""Durable files: written under a temporary name, synced and renamed; hints for OS errors."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import TextIO

from pydantic import Field

from multigrain.files import Roots, open_regular, open_to_write
from multigrain.specs.base import Spec

TEMPORARY_PREFIX = ".tmp-"
_CHUNK = 1 << 20
_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h


class FileEntry(Spec):
    """Size and checksum of a file, by which damage is detected."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0, le=2**63 - 1)


def write_synced(path: Path, data: bytes) -> FileEntry:
    """Writes a file and syncs it to disk; returns its size and checksum.

    Raises:
        OSError: if it cannot be written; also if there is a link or a pipe in its place.
    """
    with os.fdopen(open_to_write(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def open_text_to_write(path: Path) -> TextIO:
    """Opens a text file, as UTF-8 and with the newlines that are written, in place of an old one.

    Raises:
        OSError: if it cannot be written; also if there is a link or a pipe in its place.
    """
    descriptor = open_to_write(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    return os.fdopen(descriptor, "w", newline="", encoding="utf-8")


def replace_file(path: Path, data: bytes) -> None:
    """Replaces a file atomically: after a power failure it has the old content or the new one."""
    aside = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    aside.unlink(missing_ok=True)  # of a killed writer, or put there by somebody else
    write_synced(aside, data)
    aside.replace(path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Syncs a file to disk that another process or library wrote."""
    with open_regular(path) as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Syncs the directory entries of a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Creates a folder and its parents durably; does nothing if it exists.

    Args:
        path: of the folder.
        mode: of the folder and its parents, from which the umask takes away.
    """
    if not path.is_dir():
        make_folder(path.parent, mode)
        path.mkdir(mode, exist_ok=True)
        sync_folder(path.parent)


def describe(path: Path, roots: Roots = None) -> FileEntry:
    """Size and SHA-256 of a regular file. Of a file that grows meanwhile, no more is read than one
    chunk beyond its first size.

    Raises:
        OSError: see ``multigrain.files``.
    """
    digest = hashlib.sha256()
    size = 0
    with open_regular(path, roots) as file:
        most = os.fstat(file.fileno()).st_size
        while size <= most and (chunk := file.read(_CHUNK)):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(sha256=digest.hexdigest(), bytes=size)


def publish(aside: Path, final: Path) -> None:
    """Renames a finished folder to its final name, replacing a folder that has the name.

    On Linux this is atomic: the two names are swapped. Elsewhere no folder has the name for the
    moment between two renames.
    """
    sync_folder(aside)
    if not final.exists():
        aside.rename(final)
        sync_folder(final.parent)
        return
    old = final.with_name(f"{TEMPORARY_PREFIX}old-{final.name}")
    shutil.rmtree(old, ignore_errors=True)
    if _swap(aside, final):
        aside.rename(old)
    else:
        final.rename(old)
        aside.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Swaps two names atomically. False where the system does not support it."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    done: int = rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return done == 0


def clear_temporary(folder: Path) -> None:
    """Removes temporary files and folders that a killed writer left in a folder."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def os_error_hint(error: OSError, action: str, otherwise: str) -> str:
    """What an operator can do about an error of the operating system.

    A missing permission needs the user id in the message: a daemon often runs as another user
    than the operator.

    Args:
        error: to explain.
        action: that this process could not do, for example "read it".
        otherwise: the hint for anything but a missing permission.
    """
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"let uid {os.geteuid()} {action}"
    return otherwise
