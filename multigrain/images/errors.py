"""Errors of image files, which the readers of all formats share. Imported by the daemon: light."""

from __future__ import annotations

from multigrain.errors import ErrorKind, MultigrainError


def damaged(form: str, reason: str) -> MultigrainError:
    """Returns an IMAGE_UNREADABLE error of a truncated or damaged file."""
    return MultigrainError(
        ErrorKind.IMAGE_UNREADABLE,
        f"the {form} image is truncated or damaged ({reason}): send the whole file, or save it "
        "again",
    )


def contradictory(form: str, reason: str) -> MultigrainError:
    """Returns an IMAGE_UNREADABLE error of a file whose header cannot be right, even if whole."""
    return MultigrainError(
        ErrorKind.IMAGE_UNREADABLE, f"the {form} image is damaged ({reason}): save it again"
    )


def unsupported(what: str, todo: str = "save it as JPEG or PNG") -> MultigrainError:
    """Returns an IMAGE_FORMAT error of a whole file of a kind that is not read.

    Args:
        what: completes "this is ...", for example "a 12-bit JPEG".
        todo: what to do instead.
    """
    return MultigrainError(ErrorKind.IMAGE_FORMAT, f"this is {what}, which is not read: {todo}")
