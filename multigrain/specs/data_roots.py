"""Data roots: the folders under which requests may name paths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from multigrain.errors import ErrorKind, FieldViolation, MultigrainError
from multigrain.storage import os_error_hint

# Limits of Linux: PATH_MAX and NAME_MAX.
MAX_PATH_BYTES = 4095
MAX_NAME_BYTES = 255


class PathRoots:
    """The data roots. Paths are resolved before they are compared.

    Args:
        roots: absolute folders, whose symbolic links are resolved once, here. A root need not
            exist yet. Without roots every path is refused.

    Raises:
        ValueError: if a root is not absolute.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        for root in roots:
            if not root.is_absolute():
                raise ValueError(f"data root {root} is not an absolute path")
        self._roots = tuple(Path(os.path.realpath(root)) for root in roots)

    @property
    def roots(self) -> tuple[Path, ...]:
        """The roots with symbolic links resolved."""
        return self._roots

    def check(self, path: str, field: str, *, must_exist: bool = True) -> Path:
        """Checks a path and returns its real path, without ``..`` and symbolic links.

        Open the result, not ``path``, so that what was checked is what is opened.

        Args:
            path: the path in the request.
            field: its field in the request ("spec.dataset.train_path"), for messages.
            must_exist: whether a path that does not exist is refused.

        Raises:
            MultigrainError: INVALID_FIELD, if it is not an absolute path, or is under a root and
                does not exist; PATH_NOT_ALLOWED, if it is outside the roots, whether it exists or
                not.
        """
        if problem := _malformed(path):
            raise MultigrainError.field(field, problem)
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(root) for root in self._roots):
            reason = (
                "this path is outside the server's data roots; the operator can allow it with "
                "--data-root"
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
        return "has a NUL character"
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        return "has characters that no file name can have"
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
        todo = os_error_hint(error, "enter the folders above it", "")
        return f"the server has no permission for {path}; {todo}"
    except OSError:  # also a loop of symbolic links
        return f"no such file or folder on the server: {path}"
    return None
