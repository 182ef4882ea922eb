"""Reads files that others name or write: those of requests, datasets, bundles and job folders.

Whoever names a path may have put anything there. What this module opens is a regular file: opening
a pipe would wait for a writer for ever, and reading ``/dev/zero`` would fill the memory. Reading
ends at a limit even if the file grows, or claims to be empty as those in ``/proc`` do.

With ``roots``, nothing outside of these folders is opened, whichever links are in the path and
whenever they are replaced. Links may lead from one root to another. On Linux 5.6 and newer the
kernel guarantees it (``openat2`` with ``RESOLVE_BENEATH``). Elsewhere, and where a container
forbids the call, the links are resolved first, and then each part of the path is opened in the
folder before it, following no link.

Imports no package beside the standard library: the client imports it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

Roots = Sequence[Path] | None
"""Folders that may be read, with symbolic links resolved; None = no restriction."""

MAX_DOCUMENT_BYTES = 16 << 20
"""Largest manifest, specification or other document that is read as a whole."""

MAX_WEIGHTS_BYTES = 8 << 30
"""Largest file of weights. A ResNet-152 with its optimizer's state has less than 2 GiB."""

_PATH_ONLY: int = getattr(os, "O_PATH", 0)  # Linux
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPENAT2 = 437  # the same number on all architectures but Alpha
# linux/openat2.h
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_ATTEMPTS = 16  # while other processes rename folders in the path
_LINKS = 8  # at the end of a path that are followed one by one
_CHUNK = 1 << 20
_MOST_AT_ONCE = 0x7FFFF000  # Linux reads no more in one call


class OutsideRootsError(OSError):
    """A path, or a link in it, leads outside of the folders that may be read."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.EXDEV, "it leads outside the folders that may be read", path)


class NotRegularError(OSError):
    """A path leads to a pipe, a device, a socket or a folder where a file is expected."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(errno.EINVAL, f"it is {kind} and not a regular file", path)


class FileTooLargeError(OSError):
    """A file has more bytes than the reader accepts; ``size``: at least so many."""

    def __init__(self, path: str, limit: int, size: int) -> None:
        super().__init__(errno.EFBIG, f"it has more than {limit} bytes", path)
        self.size = size


def open_descriptor(path: str | os.PathLike[str], roots: Roots = None) -> int:
    """Opens a regular file for reading and returns its descriptor. Never waits.

    Args:
        path: the file.
        roots: folders that it must be in.

    Raises:
        OSError: if it is no regular file, or cannot be opened; OutsideRootsError.
    """
    name = os.fspath(path)
    try:
        descriptor = _open(name, _READ, roots)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise NotRegularError(name, "a socket or a device") from error
        raise
    return _regular(descriptor, name)


def _regular(descriptor: int, name: str) -> int:
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise NotRegularError(name, describe_mode(mode))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_regular(path: str | os.PathLike[str], roots: Roots = None) -> BinaryIO:
    """Like :func:`open_descriptor`, but returns a file object."""
    return os.fdopen(open_descriptor(path, roots), "rb")


def open_to_write(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> int:
    """Opens a file of our own to write it, where somebody may have put something else. Never waits.

    Args:
        path: the file. It is not written through a link.
        flags: how, such as ``os.O_WRONLY | os.O_CREAT | os.O_APPEND``.
        mode: of a new file.

    Returns:
        Its descriptor.

    Raises:
        OSError: if there is something else than a regular file, or it cannot be opened.
    """
    name = os.fspath(path)
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        descriptor = os.open(name, flags, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotRegularError(name, "a link") from error
        if error.errno == errno.ENXIO:
            raise NotRegularError(name, "a pipe, a socket or a device") from error
        raise
    return _regular(descriptor, name)


def open_folder(path: str | os.PathLike[str], roots: Roots = None) -> int:
    """Opens a folder, for ``os.scandir``, and returns its descriptor.

    Args:
        path: the folder.
        roots: folders that it must be in, or one of these.

    Raises:
        OSError: if it is no folder, or cannot be opened; OutsideRootsError.
    """
    return _open(os.fspath(path), _FOLDER, roots)


def stat_path(path: str | os.PathLike[str], roots: Roots = None) -> os.stat_result:
    """What a path leads to, with its links followed.

    Args:
        path: a file or folder.
        roots: folders that it must be in, or one of these.

    Raises:
        OSError: if there is nothing; OutsideRootsError, also if there is nothing.
    """
    if roots is None:
        return os.stat(path)
    descriptor = _open(os.fspath(path), _PATH_ONLY | os.O_CLOEXEC, roots)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def read_bytes(path: str | os.PathLike[str], *, max_bytes: int, roots: Roots = None) -> bytes:
    """Reads a regular file.

    Args:
        path: the file.
        max_bytes: that it may have.
        roots: folders that it must be in.

    Raises:
        OSError: as :func:`open_descriptor`; FileTooLargeError.
    """
    descriptor = open_descriptor(path, roots)
    try:
        size = os.fstat(descriptor).st_size
        if size > max_bytes:
            raise FileTooLargeError(os.fspath(path), max_bytes, size)
        # One byte more than the file has: usually the second read finds the end.
        data = os.read(descriptor, min(size + 1, _MOST_AT_ONCE))
        if not data:
            return data
        parts = [data]
        length = len(data)
        while length <= max_bytes and (data := os.read(descriptor, _CHUNK)):
            parts.append(data)
            length += len(data)
    finally:
        os.close(descriptor)
    if length > max_bytes:
        raise FileTooLargeError(os.fspath(path), max_bytes, length)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_text(path: str | os.PathLike[str], *, max_bytes: int, roots: Roots = None) -> str:
    """Reads a regular file of UTF-8 text.

    Raises:
        OSError: as :func:`read_bytes`.
        UnicodeDecodeError: if it is not UTF-8.
    """
    return read_bytes(path, max_bytes=max_bytes, roots=roots).decode()


def read_tail(path: str | os.PathLike[str], size: int) -> tuple[bytes, int]:
    """The end of a regular file, such as a log.

    Args:
        path: the file.
        size: most bytes of it.

    Returns:
        The bytes, and where in the file they begin.

    Raises:
        OSError: as :func:`open_descriptor`.
    """
    with open_regular(path) as file:
        start = max(0, file.seek(0, os.SEEK_END) - size)
        file.seek(start)
        return file.read(size), start


def read_json(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_DOCUMENT_BYTES, roots: Roots = None
) -> Any:
    """Reads a JSON document.

    Raises:
        OSError: as :func:`read_bytes`.
        ValueError: if it is not JSON, or nested too deeply.
    """
    return parse_json(read_bytes(path, max_bytes=max_bytes, roots=roots))


def parse_json(text: bytes | str) -> Any:
    """Parses JSON.

    Raises:
        ValueError: if it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_within(path: str | os.PathLike[str], roots: Roots) -> bool:
    """Whether a path leads into one of the roots, with its links resolved. Opens nothing.

    For counting and for messages: what is opened later is checked again.
    """
    return roots is None or _resolve(os.path.realpath(path), roots) is not None


def describe_mode(mode: int) -> str:
    """What a file with this mode is, with an article."""
    if stat.S_ISREG(mode):
        return "a regular file"
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def _open(path: str, flags: int, roots: Roots) -> int:
    if roots is None:
        return os.open(path, flags)
    if "\0" in path:
        raise OSError(errno.EINVAL, "its name has a NUL character", path)
    if not path.startswith("/"):
        path = os.path.join(os.getcwd(), path)
    descriptor = _open_below(path, flags, roots) if has_openat2() else None
    if descriptor is not None:
        return descriptor
    found = _resolve(os.path.realpath(path), roots)
    if found is None:
        raise OutsideRootsError(path)
    try:
        if has_openat2():
            return _openat2(*found, flags, _BENEATH | _NO_SYMLINKS)
        return _open_parts(*found, flags)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise OutsideRootsError(path) from None
        # Also what was a file or a folder a moment ago, and is a link now (ELOOP, ENOTDIR).
        raise OSError(error.errno, error.strerror, path) from None


def _open_below(path: str, flags: int, roots: Sequence[Path]) -> int | None:
    """Opens a path whose links stay in one root, or of which the last part is an absolute link.

    Returns:
        The descriptor; None if it takes more to find out where the links lead.
    """
    at = path
    for _ in range(_LINKS):
        found = _below(at, roots)
        # A part ".." is left to realpath: what it means depends on the links before it.
        if found is None or (".." in found[1] and "/../" in f"/{found[1]}/"):
            return None
        try:
            return _openat2(*found, flags, _BENEATH | _NO_MAGICLINKS)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ELOOP):
                raise OSError(error.errno, error.strerror, path) from None
        try:
            at = os.path.join(os.path.dirname(at), os.readlink(at))
        except OSError:
            return None
    return None


def _below(path: str, roots: Sequence[Path]) -> tuple[str, str] | None:
    """The root that a path begins with, and the rest of the path."""
    for root in map(os.fspath, roots):
        if path == root:
            return root, "."
        inside = root if root.endswith("/") else f"{root}/"
        if path.startswith(inside):
            return root, path[len(inside) :].lstrip("/") or "."
    return None


def _resolve(real: str, roots: Sequence[Path]) -> tuple[str, str] | None:
    """As :func:`_below`, for a real path; the roots may have links themselves."""
    return _below(real, roots) or _below(real, [Path(os.path.realpath(root)) for root in roots])


def _open_parts(root: str, below: str, flags: int) -> int:
    """Opens a path in a folder, following no link, where the kernel has no ``openat2``."""
    parts = [part for part in below.split("/") if part not in ("", ".")]
    if not parts:
        return os.open(root, flags | os.O_NOFOLLOW)
    if ".." in parts:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    folder = os.open(root, _PATH_ONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(
                part,
                _PATH_ONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
                dir_fd=folder,
            )
            os.close(folder)
            folder = inner
        return os.open(parts[-1], flags | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)


class _OpenHow(ctypes.Structure):
    """``struct open_how`` of linux/openat2.h."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


@functools.cache
def has_openat2() -> bool:
    """Whether the kernel has ``openat2`` and this process may call it."""
    if not sys.platform.startswith("linux"):
        return False
    root = os.open("/", _PATH_ONLY | os.O_CLOEXEC)
    try:
        os.close(_call(root, b".", _PATH_ONLY | os.O_CLOEXEC, _BENEATH))
    except OSError:
        return False
    finally:
        os.close(root)
    return True


def _openat2(root: str, below: str, flags: int, resolve: int) -> int:
    """Opens a path in a folder, which must not lead out of it."""
    if below == ".":  # the root itself, which may also be a file
        return os.open(root, flags | os.O_NOFOLLOW)
    folder = os.open(root, _PATH_ONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _call(folder, os.fsencode(below), flags, resolve)
    finally:
        os.close(folder)


def _call(folder: int, name: bytes, flags: int, resolve: int) -> int:
    how = _OpenHow(flags, 0, resolve)
    code = 0
    for _ in range(_ATTEMPTS):
        descriptor: int = _syscall()(_OPENAT2, folder, name, ctypes.byref(how), ctypes.sizeof(how))
        if descriptor >= 0:
            return descriptor
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code))


@functools.cache
def _syscall() -> Any:
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    function.argtypes = [
        ctypes.c_long,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.POINTER(_OpenHow),
        ctypes.c_size_t,
    ]
    return function
