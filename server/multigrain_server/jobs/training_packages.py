"""Whether this installation can train: the extra ``serve`` leaves out what only jobs need."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Final

from multigrain.errors import ErrorKind, MultigrainError

#: Packages of the extra ``server`` that are not in ``serve``.
PACKAGES: Final = ("mindspore", "scipy", "onnx", "nncf", "matplotlib")
#: The newest Python that has a wheel of MindSpore.
NEWEST_PYTHON: Final = (3, 12)


def missing() -> list[str]:
    """The packages that jobs need and that are not installed. Imports none of them."""
    return [name for name in PACKAGES if find_spec(name) is None]


def how_to_add(python: tuple[int, int] = sys.version_info[:2]) -> str:
    """What to install, on this Python."""
    command = "pip install 'multigrain[server]'"
    if python > NEWEST_PYTHON:
        return (
            f"MindSpore has no wheel for Python {python[0]}.{python[1]}: {command} in an "
            f"environment of Python 3.11 or {NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}"
        )
    return command


def require() -> None:
    """Refuses a job where it could not run.

    Raises:
        MultigrainError: WRONG_STATE, with what is missing and what to install.
    """
    if names := missing():
        raise MultigrainError(
            ErrorKind.WRONG_STATE,
            "this server serves models but runs no jobs, as it was installed without "
            f"{', '.join(names)}; {how_to_add()}",
        )
