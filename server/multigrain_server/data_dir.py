"""The daemon's data directory: its names, and the lock that keeps a second daemon out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from multigrain.storage import make_folder, remedy

# Replicas that only serve have their bundles on a read-only volume.
_ACCESS = {"jobs": os.R_OK | os.W_OK | os.X_OK, "models": os.R_OK | os.X_OK}


class DataDirError(Exception):
    """The data directory cannot be used; the message says why."""


class DataDir:
    """``<data-dir>``, created if missing and locked while this object is open.

    The lock is the kernel's: it goes with the process however that ends.

    Raises:
        DataDirError: if it cannot be written or another daemon uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            for folder in (path, self.jobs, self.models):
                make_folder(folder)
            check_access(path)
            self._fd = os.open(path / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            todo = remedy(
                error, f"write in {error.filename}, or give --data-dir", "give another --data-dir"
            )
            raise DataDirError(
                f"the data directory {path} cannot be used: {error.strerror}; {todo}"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise DataDirError(
                f"another daemon (pid {holder}) uses {path}; stop it, or give --data-dir"
            ) from None
        with contextlib.suppress(OSError):  # only for who is refused; a full disk may not take it
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    @property
    def jobs(self) -> Path:
        return self.path / "jobs"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def database(self) -> Path:
        return self.path / "state.db"

    @property
    def serving(self) -> Path:
        """What is loaded, under which aliases."""
        return self.path / "serving.json"

    @property
    def address(self) -> Path:
        """Where the daemon listens, for programs on this machine."""
        return self.path / "address"

    def write_address(self, address: str) -> None:
        aside = self.address.with_suffix(".new")
        aside.write_text(address + "\n")
        aside.rename(self.address)

    def close(self) -> None:
        """Forgets the address and gives the lock back."""
        self.address.unlink(missing_ok=True)
        os.close(self._fd)


def check_access(path: Path) -> None:
    """Whether this process may do its work in what there is of a data directory: asked before
    the first job or model is lost from sight. Raises PermissionError."""
    for name, access in _ACCESS.items():
        folder = path / name
        if folder.exists() and not os.access(folder, access, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
