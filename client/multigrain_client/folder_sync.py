"""What a folder and an index differ in: files to add, and items to delete."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from multigrain.files import open_regular
from multigrain.text import stored_path
from multigrain_client.errors import ImageError
from multigrain_client.folder_embedding import list_folder

_READ_BYTES = 1 << 20

# Called with (files done, files in total).
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class FolderSync:
    """Result of ``Index.sync_folder``; with ``dry_run``, what it would do.

    Attributes:
        added: ids of files that the index did not have.
        changed: ids of files whose bytes are others than when they were added.
        deleted: ids of items whose file is gone.
        unchanged: number of files that the index has already.
        errors: files that could not be added.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    deleted: tuple[str, ...]
    unchanged: int
    errors: tuple[ImageError, ...] = ()


@dataclass(frozen=True)
class FileToAdd:
    """A file to add to an index.

    Attributes:
        id: of its item.
        path: of the file.
        label: name of its folder; "" for a file in the root.
    """

    id: str
    path: Path
    label: str


@dataclass
class Difference:
    """Files and items, compared by the bytes of the files.

    Args:
        root: the folder.
        prefix: of the ids: the id of a file is the prefix and its path below the root.
        delete: whether items without a file are to be deleted.
    """

    root: str | os.PathLike[str]
    prefix: str = ""
    delete: bool = True
    to_add: list[FileToAdd] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    errors: list[ImageError] = field(default_factory=list)
    unchanged: int = 0

    def compare(self, known: Mapping[str, str], on_progress: OnProgress | None = None) -> None:
        """Compares the folder with an index.

        Args:
            known: SHA-256 of the index's items by id, of all whose path begins with the prefix.
            on_progress: called after every file.

        Raises:
            InvalidRequest: if the folder cannot be read, or has no image.
        """
        names = list_folder(self.root).paths
        seen = set()
        for number, name in enumerate(names):
            path = Path(self.root) / name
            id = self.prefix + stored_path(name)
            seen.add(id)
            try:
                digest = file_sha256(path)
            except OSError as error:
                reason = error.strerror or str(error)
                self.errors.append(
                    ImageError(number, str(path), "IMAGE_UNREADABLE", f"cannot be read: {reason}")
                )
                continue
            if known.get(id) == digest:
                self.unchanged += 1
            else:
                (self.changed if id in known else self.added).append(id)
                parent = Path(name).parent.name
                self.to_add.append(FileToAdd(id, path, stored_path(parent)))
            if on_progress is not None:
                on_progress(number + 1, len(names))
        if self.delete:
            self.gone = sorted(set(known) - seen)

    def result(self) -> FolderSync:
        """What was found, with the errors so far."""
        return FolderSync(
            tuple(self.added),
            tuple(self.changed),
            tuple(self.gone),
            self.unchanged,
            tuple(self.errors),
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file, in hex. Raises OSError."""
    with open_regular(path) as file:
        return _sha256(iter(lambda: file.read(_READ_BYTES), b""))


def _sha256(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()
