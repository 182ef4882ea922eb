"""Which paths a request may name: those under the roots that the operator allowed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from multigrain.errors import ErrorKind, FieldViolation, MultigrainError
from multigrain.storage import remedy

# Limits of Linux: PATH_MAX and NAME_MAX.
MAX_PATH_BYTES = 4095
MAX_NAME_BYTES = 255


class PathRoots:
    """The allowed roots. A path is judged by where it really leads, not by its spelling.

    Args:
        roots: absolute folders; symbolic links in them are followed once, here. A root need
            not exist yet. Without any root every path is refused.

    Raises:
        ValueError: a root is not absolute.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        for root in roots:
            if not root.is_absolute():
                raise ValueError(f"data root {root} is not an absolute path")
        self._roots = tuple(Path(os.path.realpath(root)) for root in roots)

    @property
    def roots(self) -> tuple[Path, ...]:
        """The roots with every symbolic link followed."""
        return self._roots

    def check(self, path: str, field: str, *, must_exist: bool = True) -> Path:
        """The real path behind ``path``: absolute, no ``..``, no symbolic link.

        Use the result, never ``path``, so that what was checked is what is opened.

        Args:
            path: what the request says.
            field: its place in the request ("spec.dataset.train_path"), for messages.
            must_exist: whether a path that does not exist is refused.

        Raises:
            MultigrainError: INVALID_FIELD if this is no absolute path at all, or lies under a
                root and does not exist; PATH_NOT_ALLOWED if it leads outside the roots,
                whether or not anything is there.
        """
        if problem := _malformed(path):
            raise MultigrainError.field(field, problem)
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(root) for root in self._roots):
            reason = (
                "this path is outside the folders the server may use; the operator can allow "
                "it with --data-root"
            )
            raise MultigrainError(
                ErrorKind.PATH_NOT_ALLOWED,
                f"{field}: {reason}",
                violations=(FieldViolation(field, reason),),
            )
        if must_exist and (missing := _missing(real, path)):
            raise MultigrainError.field(field, missing)
        return real


def _malformed(path: str) -> str | None:
    if not path:
        return "is empty; an absolute path is needed"
    if "\0" in path:
        return "holds a NUL character"
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        return "holds characters that no file name can have"
    if len(encoded) > MAX_PATH_BYTES:
        return f"has {len(encoded)} bytes; a path has at most {MAX_PATH_BYTES}"
    if any(len(name) > MAX_NAME_BYTES for name in encoded.split(b"/")):
        return f"has a name of more than {MAX_NAME_BYTES} bytes"
    if not path.startswith("/"):
        return f"is relative ({path[:60]!r}); the server needs an absolute path"
    return None


def _missing(real: Path, path: str) -> str | None:
    try:
        real.stat()
    except PermissionError as error:
        todo = remedy(error, "enter the folders above it", "")
        return f"the server may not look at {path}; {todo}"
    except OSError:  # a loop of links is as good as nothing
        return f"no such file or folder on the server: {path}"
    return None
