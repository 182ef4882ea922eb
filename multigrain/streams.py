"""Standard output and standard error of the programs, which may be closed, full, or a pipe whose
reader has left.

Trouble with progress lines must not end the work, and output that is lost must not look like
success: inside ``standard_streams`` no print raises, and the program asks afterwards what failed.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

# The exit code of a program that the signal SIGPIPE ends, as shells report it.
BROKEN_PIPE = 141


class GuardedStream(io.TextIOBase):
    """A text stream that keeps its first failure instead of raising it, and then writes nothing
    more.

    Characters that its encoding does not have are written as backslash escapes.

    Args:
        stream: the stream; None if the program was started with this one closed.

    Attributes:
        failure: the first error; None if everything has been written so far.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        if stream is None:
            self.failure = OSError(errno.EBADF, "it is closed")
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    @property
    def broken_pipe(self) -> bool:
        """Whether the reader of the pipe has left."""
        return isinstance(self.failure, BrokenPipeError)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.failure is None and self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        if self.failure is None and self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        if self.failure is None and self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._fail(error)

    def encodable(self, text: str) -> str:
        """The text as this stream shows it: with escapes for what its encoding does not have."""
        try:
            return text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        except LookupError:
            return text

    @property
    def shows_unicode(self) -> bool:
        """Whether the encoding has all characters."""
        return self.encoding.lower().replace("_", "-").startswith("utf")

    def _fail(self, error: OSError | ValueError) -> None:
        # A stream that the program itself has closed raises ValueError.
        self.failure = error if isinstance(error, OSError) else OSError(errno.EBADF, str(error))
        _write_nowhere(self)


@contextmanager
def standard_streams() -> Iterator[tuple[GuardedStream, GuardedStream]]:
    """Guards ``sys.stdout`` and ``sys.stderr`` while a program runs.

    Yields:
        standard output and standard error.
    """
    reserve_descriptors()
    before = sys.stdout, sys.stderr
    changed = [number for number in (1, 2) if _make_blocking(number)]
    output, errors = GuardedStream(sys.stdout), GuardedStream(sys.stderr)
    sys.stdout, sys.stderr = output, errors
    try:
        yield output, errors
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before
        for number in changed:
            with suppress(OSError):
                os.set_blocking(number, False)


def reserve_descriptors() -> None:
    """Opens the null device in place of standard streams that are closed: the next file or socket
    would get their numbers, and with them what libraries write to standard error."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                null = os.open(os.devnull, os.O_RDWR)
                if null != number:
                    os.dup2(null, number)
                    os.close(null)


def flush(*streams: TextIO | None) -> None:
    """Writes what streams still hold, when a program ends. What cannot be written is dropped."""
    for stream in filter(None, streams):
        try:
            stream.flush()
        except (OSError, ValueError):
            _write_nowhere(stream)


def _write_nowhere(stream: io.TextIOBase | TextIO) -> None:
    """Points the descriptor of a stream to the null device, for good.

    Python would try to write what is still buffered when it exits, and turn the exit code into 120.
    """
    with suppress(OSError, ValueError):
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, number)
        finally:
            os.close(null)


def _make_blocking(number: int) -> bool:
    """Whether the descriptor was non-blocking, where a slow reader makes prints fail."""
    try:
        if os.get_blocking(number):
            return False
        os.set_blocking(number, True)
    except OSError:
        return False
    return True
