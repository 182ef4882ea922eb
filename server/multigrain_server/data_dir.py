"""The daemon's data directory: its layout, and the lock that keeps a second daemon out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog

from multigrain.files import NotRegularError, open_regular, open_to_write, read_bytes
from multigrain.jobs.runner_identity import process_start
from multigrain.storage import make_folder, os_error_hint, replace_file

_log = structlog.get_logger(__name__)

_FOLDERS = ("jobs", "models", "indexes", "engines", "compile-cache")
# Replicas that only serve may have their bundles on a read-only volume.
_ACCESS = {"jobs": os.R_OK | os.W_OK | os.X_OK, "models": os.R_OK | os.X_OK}

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LOCK_BYTES = 512
_PID_DIGITS = 9

TOUCH_SECONDS = 5.0
"""How often a daemon shows that it runs; two daemons must have the same."""


#: Name of the file with the loaded models and aliases, in the data directory.
SERVING_STATE = "serving.json"


class DataDirError(Exception):
    """The data directory cannot be used; the message says why."""


class DataDir:
    """``<data-dir>``, created if missing and locked until ``close``.

    The lock is a ``flock``: the kernel releases it when the process ends in any way. Some network
    file systems grant it to everyone or to nobody, so the file also says which process holds it,
    and that process touches it regularly for daemons of other machines and containers to see.

    Args:
        path: of the data directory.

    Raises:
        DataDirError: if it cannot be written or another daemon uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._published = b""
        try:
            for folder in (path, *(path / name for name in _FOLDERS)):
                make_folder(folder, mode=0o700)
            check_access(path)
            self._fd = open_to_write(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        except (NotRegularError, IsADirectoryError) as error:
            raise DataDirError(
                f"the data directory {path} cannot be used: {error.filename}: {error.strerror}; "
                "remove it"
            ) from error
        except (FileExistsError, NotADirectoryError) as error:
            raise DataDirError(
                f"the data directory {path} cannot be used: {_file_in_the_way(path)} is not a "
                "folder but a file or a broken link; give another --data-dir, or move it away"
            ) from error
        except OSError as error:
            hint = os_error_hint(
                error, f"write in {error.filename}, or give --data-dir", "give another --data-dir"
            )
            raise DataDirError(
                f"the data directory {path} cannot be used: {error.strerror}; {hint}"
            ) from error
        try:
            self._lock()
        except BaseException:
            os.close(self._fd)
            raise
        self._holder = LockHolder.of_this_process()
        # It only helps where locks do not work: a full disk is no reason to fail.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, self._holder.line, 0)
        self._closing = threading.Event()
        self._touching = threading.Thread(target=self._touch, name="data-lock", daemon=True)
        self._touching.start()

    def _lock(self) -> None:
        holder = LockHolder.read(self._fd)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataDirError(
                f"another daemon (pid {holder.pid or 'unknown'}) uses {self.path}; stop it, or "
                "give --data-dir"
            ) from None
        except OSError as error:
            _log.warning("the file system has no locks", path=str(self.path), reason=str(error))
        if holder.runs or (holder.is_elsewhere and self._is_touched()):
            raise DataDirError(
                f"another daemon (pid {holder.pid} on {holder.host}) uses {self.path}, although "
                "the file system did not refuse its lock to this one; stop it, or give --data-dir"
            )

    def _touch(self) -> None:
        while not self._closing.wait(TOUCH_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._fd)

    def _is_touched(self) -> bool:
        """Whether another process touches the lock file, watched for a while."""
        _log.info("waiting to see whether another daemon runs", path=str(self.path))
        first = self._lock_file.stat().st_mtime_ns
        end = time.monotonic() + 2.5 * TOUCH_SECONDS
        while time.monotonic() < end:
            time.sleep(TOUCH_SECONDS / 10)
            # Opened again: NFS asks the server then, and may answer from its cache otherwise.
            with open_regular(self._lock_file) as file:
                if os.fstat(file.fileno()).st_mtime_ns != first:
                    return True
        return False

    @property
    def _lock_file(self) -> Path:
        return self.path / "daemon.lock"

    @property
    def jobs(self) -> Path:
        return self.path / "jobs"

    @property
    def compile_cache(self) -> Path:
        """Compiled graphs of training jobs."""
        return self.path / "compile-cache"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def indexes(self) -> Path:
        return self.path / "indexes"

    @property
    def engines(self) -> Path:
        """The working folder of engines: holds what libraries write, such as core dumps."""
        return self.path / "engines"

    @property
    def database(self) -> Path:
        return self.path / "state.db"

    @property
    def serving(self) -> Path:
        """Which models are loaded, under which aliases."""
        return self.path / SERVING_STATE

    @property
    def address(self) -> Path:
        """The address that the daemon listens on, for clients on this machine."""
        return self.path / "address"

    def write_address(self, address: str) -> None:
        """Publishes the address for clients on this machine."""
        self._published = f"{address}\n".encode()
        replace_file(self.address, self._published)

    def close(self) -> None:
        """Removes the address file, unless another daemon wrote it, and releases the lock."""
        self._closing.set()
        self._touching.join()
        with contextlib.suppress(OSError):
            if read_bytes(self.address, max_bytes=_LOCK_BYTES) == self._published:
                self.address.unlink()
        with contextlib.suppress(OSError):
            if LockHolder.read(self._fd) == self._holder:
                os.ftruncate(self._fd, 0)
        os.close(self._fd)


@dataclass(frozen=True)
class LockHolder:
    """The process that holds the lock, as ``daemon.lock`` names it.

    Attributes:
        pid: 0 if the file names none.
        host: name of its machine.
        started: see ``process_start``.
    """

    pid: int = 0
    host: str = ""
    started: str = ""

    @classmethod
    def of_this_process(cls) -> LockHolder:
        """The calling process."""
        return cls(os.getpid(), socket.gethostname(), process_start(os.getpid()))

    @classmethod
    def read(cls, descriptor: int) -> LockHolder:
        """The content of the open file; nobody if it is empty or damaged."""
        words = os.pread(descriptor, _LOCK_BYTES, 0).decode(errors="replace").split()
        if not words or not words[0].isdecimal() or len(words[0]) > _PID_DIGITS:
            return cls()
        return cls(int(words[0]), *words[1:3])

    @property
    def line(self) -> bytes:
        """The content of the file."""
        return f"{self.pid} {self.host} {self.started}\n".encode()

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is of another machine or container, where this one cannot look for it."""
        return self.pid > 0 and self.host not in ("", socket.gethostname())

    @property
    def runs(self) -> bool:
        """Whether it is another process of this machine that has not ended."""
        if self.pid in (0, os.getpid()) or not self.started:
            return False
        try:
            return process_start(self.pid) == self.started
        except (psutil.NoSuchProcess, OverflowError):
            return False


def exposures(path: Path) -> Iterator[tuple[str, str]]:
    """How other users of the machine can read or change a data directory.

    The daemon creates files and folders for its own user only, but leaves existing ones as they
    are.

    Args:
        path: of the data directory, which need not exist.

    Yields:
        the problem, and how to fix it.
    """
    if not path.is_dir():
        return
    root = path.stat()
    if _prepared_by_kubernetes(root):
        return
    me = os.geteuid()
    if root.st_uid not in (0, me):
        yield f"it belongs to uid {root.st_uid}, who can change it", f"chown {me} {path}"
    for folder in (path, *(path / name for name in _FOLDERS)):
        if folder.is_dir() and folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            yield f"other users can write in {folder}", f"chmod -R go-w {path}"
            return
    if root.st_mode & _OTHERS:
        for name in (*_FOLDERS, "state.db"):
            inside = path / name
            if inside.exists() and inside.stat().st_uid == me and inside.stat().st_mode & _OTHERS:
                yield f"other users can read {inside}", f"chmod -R go= {path}"
                return


def _prepared_by_kubernetes(root: os.stat_result) -> bool:
    """Whether a folder is a volume that Kubernetes gave to the group ``fsGroup``.

    It belongs to root and may be changed by everybody in the pod, which has one user.
    """
    return root.st_uid == 0 and root.st_gid == os.getegid() and bool(root.st_mode & stat.S_ISGID)


def _file_in_the_way(path: Path) -> Path:
    """What stands where a folder of the data directory must be."""
    needed = (*reversed(path.parents), path, *(path / name for name in _FOLDERS))
    # These two functions do not raise for a folder that may not be searched.
    return next((at for at in needed if os.path.lexists(at) and not os.path.isdir(at)), path)


def check_access(path: Path) -> None:
    """Checks that this process may use the existing folders of a data directory.

    Without this check, jobs or models that may not be read would seem not to exist.

    Raises:
        PermissionError: if it may not.
    """
    for name, access in _ACCESS.items():
        folder = path / name
        if folder.exists() and not os.access(folder, access, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
