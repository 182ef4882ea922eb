"""Durable files: written aside, synced and renamed; and hints about file system errors."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import sys
from pathlib import Path

from multigrain.specs.base import Spec

TEMPORARY_PREFIX = ".tmp-"
_CHUNK = 1 << 20
_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h


class FileEntry(Spec):
    """A file of the folder with the checks that tell whether it is whole."""

    sha256: str
    bytes: int


def write_synced(path: Path, data: bytes) -> FileEntry:
    """Writes a new file, to the disk and not only to its cache, and describes it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def replace_file(path: Path, data: bytes) -> None:
    """Gives a file new content: after a power cut it has the old one or the new one."""
    aside = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    write_synced(aside, data)
    aside.replace(path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Forces a file that somebody else wrote to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Forces the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, durably; harmless if it is there."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def describe(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(sha256=digest.hexdigest(), bytes=size)


def publish(aside: Path, final: Path) -> None:
    """Renames a finished folder to its name; a folder already there is replaced.

    At every moment the old or the new one has the name, where the system can swap two names at
    once; elsewhere, for the moment between two renames, none has.
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
    """Gives each the other's name, in one step. False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    done: int = rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return done == 0


def clear_temporary(folder: Path) -> None:
    """Removes what a writer that died has left in a folder."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


# MERGED: What to do about an error of the file system.


def remedy(error: OSError, wanted: str, otherwise: str) -> str:
    """The advice that belongs to ``error``.

    No room on a disk and no permission want different things of an operator, who also has to
    know whom to permit something: a daemon often runs as another user than the one who looks.

    Args:
        error: as the system gave it.
        wanted: what this process could not do ("read it"), said where it is not allowed to.
        otherwise: the advice in every other case.
    """
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"let uid {os.geteuid()} {wanted}"
    return otherwise
