"""Image files by the number in their name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from multigrain.data.folder import EXTENSIONS
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.remedy import remedy


@dataclass(frozen=True)
class NumberedFiles:
    """Images whose names carry a number.

    Args:
        paths: number -> path relative to the root, in the order of the numbers.
        ignored: images whose names do not have the form.
    """

    paths: dict[int, str]
    ignored: int


def image_paths(root: Path, folder: Path) -> list[str]:
    """Image files in a folder and its sub-folders, relative to ``root``, sorted; hidden ones
    are left out.

    Raises:
        MultigrainError: DATASET if the folder does not exist or cannot be listed.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise dataset_error(f"{folder} {what}: give the folder of the images")
    found: list[str] = []

    def failed(error: OSError) -> None:
        todo = remedy(error, "list and read it", "check the disk")
        raise dataset_error(
            f"{error.filename} cannot be listed: {error.strerror}; {todo}"
        ) from error

    for directory, subfolders, names in os.walk(folder, onerror=failed):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = Path(directory).relative_to(root)
        found += [
            (below / name).as_posix()
            for name in names
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(found)


def numbered_files(root: Path, folder: Path, form: re.Pattern[str]) -> NumberedFiles:
    """The images of a folder whose names without extension have a form.

    In the order of their numbers: what a listing gives is in no order on most file systems.

    Args:
        root: what the paths are relative to.
        folder: below it.
        form: matches a whole name; its first group is the number.

    Raises:
        MultigrainError: DATASET, also if two files have the same number.
    """
    paths: dict[int, str] = {}
    ignored = 0
    for path in image_paths(root, folder):
        match = form.fullmatch(Path(path).stem)
        if match is None:
            ignored += 1
            continue
        number = int(match[1])
        if number in paths:
            raise dataset_error(
                f"{paths[number]} and {path} in {root} are the same image {match[1]} of the "
                "benchmark: remove one of them"
            )
        paths[number] = path
    return NumberedFiles(dict(sorted(paths.items())), ignored)


def dataset_error(message: str) -> MultigrainError:
    """DATASET."""
    return MultigrainError(ErrorKind.DATASET, message)
