"""Embeds the images of a folder into a file of vectors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from multigrain.data.listing import Listing, list_images
from multigrain.text import printable, stored_path
from multigrain_client.errors import (
    FieldViolation,
    ImageError,
    ImagesFailed,
    ServerError,
)
from multigrain_client.images import EmbeddedImage
from multigrain_client.json_format import invalid
from multigrain_client.vector_files import vector_file

# Called with (images done, images in total).
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class FolderEmbedding:
    """Result of ``embed_folder``.

    Attributes:
        file: the file of vectors; one row per image, sorted by path.
        images: number of rows.
        size: length of a vector.
        model: "name@version" of the model.
        errors: the images without a vector.
        seconds: wall-clock time.
        left_out: files and folders that were left out, by reason ("broken_link": 2).
        left_out_message: the same in one line, with extensions and examples; "" if there are
            none.
    """

    file: Path
    images: int
    size: int
    model: str
    errors: tuple[ImageError, ...]
    seconds: float
    left_out: Mapping[str, int] = field(default_factory=dict)
    left_out_message: str = ""


def list_folder(root: str | os.PathLike[str]) -> Listing:
    """Lists the image files below a folder as the daemon lists a dataset.

    Files in a format for which the server may lack a package are listed: it says so.

    Raises:
        InvalidRequest: if the folder does not exist, cannot be read, or has no image.
    """
    try:
        listing = list_images(root, optional=True)
    except OSError as error:
        reason = error.strerror or str(error)
        name = printable(os.fsdecode(error.filename or root))
        raise invalid([FieldViolation("folder", f"{name}: {reason}")]) from error
    if not listing.paths:
        left_out = listing.left_out.describe()
        found = f"only {left_out}" if left_out else "nothing"
        raise invalid(
            [
                FieldViolation(
                    "folder", f"{printable(os.fspath(root))} has no image file: it has {found}"
                )
            ]
        )
    return listing


@dataclass
class FolderRun:
    """One ``embed_folder`` call: writes a row per result, in order.

    A context manager. An error or interrupt that leaves it gets a note that names the file with
    the rows so far.

    Args:
        root: the folder.
        out: the file to write, .parquet or .npy.
        on_progress: called after every image.

    Raises:
        InvalidRequest: for an invalid folder or file name.
        MissingPackage: for Parquet without pyarrow.
    """

    root: str | os.PathLike[str]
    out: str | os.PathLike[str]
    on_progress: OnProgress | None = None
    _model: str = ""
    _size: int = 0
    _done: int = 0
    _errors: list[ImageError] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, path in (("folder", self.root), ("out", self.out)):
            # Path("") would be the current directory.
            if not os.fspath(path):
                raise invalid([FieldViolation(name, "the path is empty")])
        listing = list_folder(self.root)
        self._names, self._left_out = listing.paths, listing.left_out
        out = self._out = Path(self.out)
        self._file = vector_file(out, len(self._names))
        if not out.parent.is_dir():
            raise invalid(
                [FieldViolation("out", f"there is no folder {printable(str(out.parent))}")]
            )
        self._started = time.monotonic()

    @property
    def paths(self) -> list[Path]:
        root = Path(self.root)
        return [root / name for name in self._names]

    def __enter__(self) -> Self:
        """Raises:
        InvalidRequest: if the file cannot be written.
        """
        try:
            self._file.open()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            # `_done` counts rows: without one there is nothing to keep.
            if error is not None and self._size and self._done:
                error.add_note(self._keep())
        finally:
            self._file.close()

    def _keep(self) -> str:
        """Keeps the rows so far; says where."""
        try:
            rows, files = self._file.keep()
        except OSError as error:
            return f"the rows so far could not be kept: {error.strerror or error}"
        if not rows:
            return "no row could be kept"
        total = len(self._names)
        which = f"all {total} rows" if rows == total else f"the first {rows} of {total} rows"
        return f"{which} are in {' and '.join(printable(str(file)) for file in files)}"

    def add(self, image: EmbeddedImage) -> None:
        """Writes the next row.

        Raises:
            ServerError: if the model changed since the first row.
            OSError: if the file cannot be written.
        """
        if image.error is not None:
            self._errors.append(image.error)
        if image.vector is not None:
            if not self._size:
                self._begin(len(image.vector), image.model)
            elif image.model != self._model:
                raise ServerError(
                    f"the model changed from {self._model} to {image.model} during the call; name "
                    "it as name@version"
                )
        if self._size:
            self._write(image)
        self._done += 1
        if self.on_progress is not None:
            self.on_progress(self._done, len(self._names))

    def finish(self) -> FolderEmbedding:
        """Completes the file.

        Raises:
            ImagesFailed: if no image has a vector.
        """
        if not self._size:
            raise ImagesFailed(self._errors, len(self._names))
        self._file.finish()
        return FolderEmbedding(
            self._out,
            self._done,
            self._size,
            self._model,
            tuple(self._errors),
            time.monotonic() - self._started,
            self._left_out.by_reason,
            self._left_out.describe(),
        )

    def _begin(self, size: int, model: str) -> None:
        self._size, self._model = size, model
        self._file.begin(size, model)
        # Rows before the first vector were held back: the vector size was unknown.
        for error in self._errors:
            self._file.add(stored_path(self._names[error.index]), None, error.message)

    def _write(self, image: EmbeddedImage) -> None:
        reason = image.error.message if image.error is not None else ""
        self._file.add(stored_path(self._names[image.index]), image.vector, reason)
