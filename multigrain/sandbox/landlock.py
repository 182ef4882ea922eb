"""Landlock: which files a process may open, and which processes it may signal.

Three system calls of the kernel, by ctypes. Their interface is stable, and the one package that
wraps them (``landlock`` 1.0.0.dev5) is a development release that knows neither rules for single
files nor TCP nor scopes.

Source: ``include/uapi/linux/landlock.h`` and https://docs.kernel.org/userspace-api/landlock.html.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# The numbers are the same on every architecture that this project runs on.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_FIRST_RIGHTS = (1 << 13) - 1  # of ABI 1: up to MAKE_SYM
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
# Rights that later versions added.
_ADDED: Final = {2: 1 << 13, 3: _TRUNCATE, 5: _IOCTL_DEV}
_NET_ABI, _NET_TCP = 4, 0b11  # bind, connect
_SCOPE_ABI, _SCOPES = 6, 0b11  # abstract Unix sockets, signals

#: The first version that keeps a process from signaling others.
SIGNALS_ABI: Final = _SCOPE_ABI

LIST = _READ_DIR
READ = _READ_FILE | _READ_DIR
RUN = READ | _EXECUTE
#: Everything but making devices and controlling them.
WRITE = ((_FIRST_RIGHTS | 1 << 13 | _TRUNCATE) & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK)) | READ


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


@dataclass(frozen=True)
class Rule:
    """A file, or a folder with everything below it, and what may be done with it."""

    path: Path
    rights: int


# A rule holds for an inode, and procfs makes a new one for a folder that it has forgotten: an open
# descriptor keeps it from forgetting.
_pinned: list[int] = []


def abi() -> int:
    """The version of Landlock in this kernel.

    Raises:
        OSError: if there is none: ENOSYS, EOPNOTSUPP if it is disabled, or EPERM by a filter of
            system calls around this process.
    """
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, "Landlock is a part of Linux")
    return _syscall(_CREATE_RULESET, None, 0, _VERSION)


def explain(error: OSError) -> str:
    """Why there is no Landlock, for an operator."""
    if error.errno == errno.ENOSYS:
        return "the kernel has no Landlock (Linux 5.13 or newer has it)"
    if error.errno == errno.EOPNOTSUPP:
        return "Landlock is disabled: add landlock to the kernel's parameter lsm="
    if error.errno == errno.EPERM:
        return "Landlock is forbidden here, by a container's seccomp profile for example"
    return f"Landlock failed: {error.strerror}"


def restrict(rules: Sequence[Rule], *, tcp: bool, devices: bool) -> int:
    """Restricts the calling thread, and the threads and processes that it starts, to ``rules``.

    Files that are open already stay usable. A path that does not exist is skipped. Whatever the
    rules, no process outside can be signaled and no abstract Unix socket outside connected to.
    The process must have set no_new_privs.

    Args:
        rules: what may be opened.
        tcp: allow to bind and connect TCP sockets.
        devices: allow to control devices (ioctl).

    Returns:
        The version of Landlock.

    Raises:
        OSError: if this kernel cannot; nothing is restricted then.
    """
    version = abi()
    handled = _FIRST_RIGHTS
    for since, rights in _ADDED.items():
        if version >= since:
            handled |= rights
    if devices:
        handled &= ~_IOCTL_DEV
    ruleset = _Ruleset(
        handled,
        _NET_TCP if version >= _NET_ABI and not tcp else 0,
        _SCOPES if version >= _SCOPE_ABI else 0,
    )
    fd = _syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.sizeof(ruleset), 0)
    try:
        for rule in rules:
            with _opened(rule.path) as path_fd:
                if path_fd >= 0:
                    _allow(fd, path_fd, rule.rights & handled)
        _syscall(_RESTRICT_SELF, fd, 0)
    finally:
        os.close(fd)
    return version


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of ``path``; -1 if it does not exist or may not be looked up."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        yield -1
        return
    try:
        yield fd
        if path.is_relative_to("/proc/self"):
            _pinned.append(os.dup(fd))
    finally:
        os.close(fd)


def _allow(ruleset: int, path_fd: int, rights: int) -> None:
    if not stat.S_ISDIR(os.fstat(path_fd).st_mode):
        rights &= _OF_FILES
    if rights:
        beneath = _PathBeneath(rights, path_fd)
        _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(beneath), 0)


def _syscall(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    libc.syscall.restype = ctypes.c_long
    result: int = libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
