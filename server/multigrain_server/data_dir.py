"""The daemon's data directory: its layout, and the lock that keeps a second daemon out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from multigrain.storage import make_folder, os_error_hint, replace_file

_FOLDERS = ("jobs", "models", "engines")
# Replicas that only serve may have their bundles on a read-only volume.
_ACCESS = {"jobs": os.R_OK | os.W_OK | os.X_OK, "models": os.R_OK | os.X_OK}


class DataDirError(Exception):
    """The data directory cannot be used; the message says why."""


class DataDir:
    """``<data-dir>``, created if missing and locked until ``close``.

    The lock is a ``flock``: the kernel releases it when the process ends in any way.

    Args:
        path: of the data directory.

    Raises:
        DataDirError: if it cannot be written or another daemon uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            for folder in (path, *(path / name for name in _FOLDERS)):
                make_folder(folder)
            check_access(path)
            self._fd = os.open(path / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise DataDirError(
                f"another daemon (pid {holder}) uses {path}; stop it, or give --data-dir"
            ) from None
        # The pid only helps to explain a refused lock: a full disk is no reason to fail.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    @property
    def jobs(self) -> Path:
        return self.path / "jobs"

    @property
    def models(self) -> Path:
        return self.path / "models"

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
        return self.path / "serving.json"

    @property
    def address(self) -> Path:
        """The address that the daemon listens on, for clients on this machine."""
        return self.path / "address"

    def write_address(self, address: str) -> None:
        """Publishes the address for clients on this machine."""
        replace_file(self.address, f"{address}\n".encode())

    def close(self) -> None:
        """Removes the address file and releases the lock."""
        self.address.unlink(missing_ok=True)
        os.close(self._fd)


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
