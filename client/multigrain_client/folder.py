"""A folder of images -> a file of vectors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from multigrain_client.answers import EmbeddedImage
from multigrain_client.errors import (
    FieldViolation,
    ImageError,
    ImagesFailed,
    ServerError,
)
from multigrain_client.messages import invalid
from multigrain_client.vector_file import vector_file

# What the server decodes.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

# (images answered, images in all)
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class FolderEmbedding:
    """What ``embed_folder`` has written.

    Attributes:
        file: the file of vectors; rows are in the order of the paths, sorted.
        images: rows.
        size: numbers of a vector.
        model: "name@version" that made them.
        errors: the images that have no vector.
        seconds: wall time.
    """

    file: Path
    images: int
    size: int
    model: str
    errors: tuple[ImageError, ...]
    seconds: float


def image_files(root: str | os.PathLike[str]) -> list[str]:
    """Paths of the image files under a folder, relative to it, with "/", sorted. Hidden files and
    folders are left out; links to folders are not followed (they can be circles).

    Raises:
        InvalidRequest: if there is no such folder, it cannot be read, or it has no image.
    """
    root = Path(root)

    def refuse(error: OSError) -> None:
        reason = error.strerror or str(error)
        raise invalid([FieldViolation("folder", f"{error.filename}: {reason}")]) from error

    found: list[str] = []
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(folder).relative_to(root)
        found += [
            (inside / name).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    if not found:
        known = " ".join(sorted(EXTENSIONS))
        raise invalid([FieldViolation("folder", f"{root} has no image file ({known})")])
    return sorted(found)


@dataclass
class FolderRun:
    """One ``embed_folder``: takes answers in order, writes rows. Left by an error, it removes
    what it has written.

    Args:
        root: the folder.
        out: name of the file to write, .parquet or .npy.
        on_progress: called after every answer.

    Raises:
        InvalidRequest: for a folder or a name that will not do.
        MissingPackage: for Parquet without pyarrow.
    """

    root: Path
    out: Path
    on_progress: OnProgress | None = None
    _model: str = ""
    _size: int = 0
    _done: int = 0
    _errors: list[ImageError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names = image_files(self.root)
        self._file = vector_file(self.out, len(self._names))
        if not self.out.parent.is_dir():
            raise invalid([FieldViolation("out", f"there is no folder {self.out.parent}")])
        self._started = time.monotonic()

    @property
    def paths(self) -> list[Path]:
        return [self.root / name for name in self._names]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._file.abort()

    def add(self, answer: EmbeddedImage) -> None:
        """Raises:
        ServerError: if another model answers than before.
        OSError: if the file cannot be written.
        """
        if answer.error is not None:
            self._errors.append(answer.error)
        if answer.vector is not None:
            if not self._size:
                self._begin(len(answer.vector), answer.model)
            elif answer.model != self._model:
                raise ServerError(
                    f"{self._model} answered first and {answer.model} now: the model was "
                    "switched meanwhile; name one as name@version"
                )
        if self._size:
            self._write(answer)
        self._done += 1
        if self.on_progress is not None:
            self.on_progress(self._done, len(self._names))

    def finish(self) -> FolderEmbedding:
        """Raises:
        ImagesFailed: if not one image has a vector.
        """
        if not self._size:
            raise ImagesFailed(self._errors, len(self._names))
        self._file.finish()
        return FolderEmbedding(
            self.out,
            self._done,
            self._size,
            self._model,
            tuple(self._errors),
            time.monotonic() - self._started,
        )

    def _begin(self, size: int, model: str) -> None:
        self._size, self._model = size, model
        self._file.begin(size, model)
        # The size of a vector was not known while only errors came.
        for error in self._errors:
            self._file.add(self._names[error.index], None, error.message)

    def _write(self, answer: EmbeddedImage) -> None:
        reason = answer.error.message if answer.error is not None else ""
        self._file.add(self._names[answer.index], answer.vector, reason)
