"""A file that appears under its name only when it is complete."""

from __future__ import annotations

import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from multigrain_client.errors import InvalidRequest
from multigrain_client.local_files import descriptor_of


class OutputFile:
    """Writes a temporary file in the folder of the result and renames it when it is complete.

    A context manager: it creates the file on entering, so that a missing folder or permission is
    found before the work, and removes what is not finished. Devices, named
    pipes and open descriptors (/dev/stdout, /dev/fd/63), which cannot be replaced, are written
    directly.

    Args:
        path: the result. A file of this name is replaced at the end.
        buffered: False = every write reaches the file, or raises.

    Attributes:
        path: the result.
        target: where it is, through links; absolute, so that changing the folder does not matter.
        stream: the temporary file, open for writing.
        finished: it has its name.
    """

    target: Path
    stream: BinaryIO

    def __init__(self, path: str | os.PathLike[str], *, buffered: bool = True) -> None:
        self.path = Path(path)
        self._buffering = -1 if buffered else 0
        self._partial: Path | None = None
        self._opened = False
        self.finished = False

    def __enter__(self) -> Self:
        """Raises:
        InvalidRequest: if the file cannot be written.
        """
        try:
            self._open()
        except OSError as error:
            raise InvalidRequest(
                f"cannot write {os.fspath(self.path)}: {error.strerror or error}"
            ) from error
        self._opened = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()

    def sync(self) -> None:
        """Writes everything to the disk.

        Raises:
            OSError: if it is full or fails.
        """
        self.stream.flush()
        if self._partial is not None:
            os.fsync(self.stream.fileno())

    def finish(self) -> Path:
        """Moves the file to its name.

        Raises:
            OSError: if it cannot be written completely.
        """
        self.sync()
        self.stream.close()
        if self._partial is not None:
            self._partial.replace(self.target)
        self.finished = True
        return self.path

    def reader(self) -> BinaryIO:
        """The temporary file, open for reading."""
        return (self._partial or self.target).open("rb")

    def keep(self, name: str) -> Path:
        """Gives an unfinished file another name in its folder, with a number if it is taken.

        Returns:
            its path; relative, if that of the result is and the folder was not changed.

        Raises:
            OSError: if it cannot be renamed.
        """
        self.stream.close()
        if self._partial is None or self.finished:
            return self.path
        path = kept = self.target.with_name(name)
        number = 1
        while os.path.lexists(kept):
            number += 1
            kept = path.with_name(f"{path.stem}-{number}{path.suffix}")
        self._partial.rename(kept)
        self.finished = True
        shown = self.path.with_name(kept.name)
        return shown if os.path.realpath(shown) == str(kept) else kept

    def discard(self) -> None:
        """Closes and removes the temporary file, unless it was finished or kept."""
        if self._opened:
            # An error of a full disk matters no more.
            with suppress(OSError):
                self.stream.close()
        if self._partial is not None and not self.finished:
            self._partial.unlink(missing_ok=True)

    def _open(self) -> None:
        # Through a link: the link itself stays.
        target = self.target = Path(os.path.realpath(self.path))
        open_descriptor = descriptor_of(self.path)
        if open_descriptor is not None:
            copy = os.dup(open_descriptor)
            self.stream = os.fdopen(copy, "wb", buffering=self._buffering)
            return
        try:
            mode = target.stat().st_mode
        except FileNotFoundError:
            mode = 0
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(0, "it is a folder; give the name of a file")
        if mode and not os.access(target, os.W_OK):
            raise PermissionError(0, "Permission denied")
        if mode and not stat.S_ISREG(mode):
            self.stream = target.open("wb", buffering=self._buffering)
            return
        if not target.parent.is_dir():
            raise FileNotFoundError(0, f"there is no folder {target.parent}")
        partial = target.with_name(f".{uuid.uuid4().hex}.part")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        descriptor = os.open(partial, flags, stat.S_IMODE(mode) or 0o666)
        self._partial = partial
        self.stream = os.fdopen(descriptor, "wb", buffering=self._buffering)
