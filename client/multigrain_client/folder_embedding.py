"""Embeds the images of a folder into a file of vectors: .npy or Parquet.

Rows are written one after the other, so that a million vectors never are in memory together.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

import numpy as np

from multigrain.data.listing import Listing, list_images
from multigrain.text import printable, stored_path
from multigrain_client.errors import (
    FieldViolation,
    ImageError,
    ImagesFailed,
    MissingPackage,
    ServerError,
)
from multigrain_client.images import EmbeddedImage, FloatArray
from multigrain_client.json_format import invalid

# Called with (images done, images in total).
OnProgress = Callable[[int, int], None]

# Rows of one Parquet row group: 2,048 vectors of 2,048 numbers are 16 MiB.
ROW_GROUP = 2048


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
    """One ``embed_folder`` call: writes a row per result, in order. A context manager that
    removes the unfinished file if an error leaves it.

    Args:
        root: the folder.
        out: the file to write, .parquet or .npy.
        on_progress: called after every image.

    Raises:
        InvalidRequest: for an invalid folder or file name.
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
        listing = list_folder(self.root)
        self._names, self._left_out = listing.paths, listing.left_out
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
            self.out,
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


class VectorFile(Protocol):
    """A file that appears under its name only when it is complete."""

    def begin(self, size: int, model: str) -> None:
        """Called once, before the first row.

        Args:
            size: length of a vector.
            model: "name@version" of the model.
        """

    def add(self, path: str, vector: FloatArray | None, error: str) -> None:
        """Writes the next row: a vector, or the reason why there is none."""

    def finish(self) -> None:
        """Moves the file to its name."""

    def abort(self) -> None:
        """Removes the unfinished file."""


def vector_file(out: Path, rows: int) -> VectorFile:
    """The writer for a .parquet or .npy file.

    Raises:
        InvalidRequest: for another suffix.
        MissingPackage: for Parquet without pyarrow.
    """
    if out.suffix == ".npy":
        return NpyFile(out, rows)
    if out.suffix == ".parquet":
        return ParquetFile(out)
    raise invalid([FieldViolation("out", f"{out.name!r} must end in .parquet or .npy")])


class NpyFile:
    """float32 (N, D) as .npy, with NaN rows for failed images, and a .csv file with row, path and
    error next to it."""

    def __init__(self, out: Path, rows: int) -> None:
        self._out = out
        self._rows = rows
        self._part = out.with_name(out.name + ".part")
        self._list = out.with_suffix(".csv")
        self._list_part = out.with_name(self._list.name + ".part")
        self._matrix: Any = None
        self._text: TextIO | None = None
        self._written = 0

    def begin(self, size: int, model: str) -> None:
        open_memmap: Any = np.lib.format.open_memmap  # untyped in NumPy
        self._matrix = open_memmap(
            self._part, mode="w+", dtype=np.float32, shape=(self._rows, size)
        )
        self._text = self._list_part.open("w", newline="", encoding="utf-8")
        self._csv = csv.writer(self._text)
        self._csv.writerow(["row", "path", "error"])

    def add(self, path: str, vector: FloatArray | None, error: str) -> None:
        self._matrix[self._written] = np.nan if vector is None else vector
        self._csv.writerow([self._written, path, error])
        self._written += 1

    def finish(self) -> None:
        self._close()
        os.replace(self._list_part, self._list)
        os.replace(self._part, self._out)

    def abort(self) -> None:
        self._close()
        self._part.unlink(missing_ok=True)
        self._list_part.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._matrix is not None:
            self._matrix.flush()
            self._matrix = None
        if self._text is not None:
            self._text.close()
            self._text = None


class ParquetFile:
    """Columns ``path`` (string), ``embedding`` (list<float> of length D, null for a failed image)
    and ``error`` (string, null without an error); the model is in the metadata."""

    def __init__(self, out: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise MissingPackage(
                "writing Parquet needs pyarrow: pip install 'multigrain[parquet]', or write .npy"
            ) from error
        self._arrow: Any = pyarrow
        self._out = out
        self._part = out.with_name(out.name + ".part")
        self._writer: Any = None
        self._rows: list[tuple[str, FloatArray | None, str]] = []

    def begin(self, size: int, model: str) -> None:
        arrow = self._arrow
        self._schema = arrow.schema(
            [
                ("path", arrow.string()),
                # Not a fixed-size list: Arrow cannot read those back if one is null.
                ("embedding", arrow.list_(arrow.float32())),
                ("error", arrow.string()),
            ],
            metadata={"multigrain.model": model},
        )
        # Zstandard is cheap; float32 vectors hardly shrink, but paths do.
        self._writer = arrow.parquet.ParquetWriter(self._part, self._schema, compression="zstd")

    def add(self, path: str, vector: FloatArray | None, error: str) -> None:
        self._rows.append((path, vector, error))
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def finish(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()
        self._writer = None
        os.replace(self._part, self._out)

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._part.unlink(missing_ok=True)

    def _flush(self) -> None:
        arrow = self._arrow
        self._writer.write_table(
            arrow.table(
                [
                    arrow.array([path for path, _, _ in self._rows], arrow.string()),
                    self._vectors([vector for _, vector, _ in self._rows]),
                    arrow.array([error or None for _, _, error in self._rows], arrow.string()),
                ],
                schema=self._schema,
            )
        )
        self._rows.clear()

    def _vectors(self, vectors: Sequence[FloatArray | None]) -> Any:
        arrow = self._arrow
        lengths = [0 if vector is None else len(vector) for vector in vectors]
        present = [vector for vector in vectors if vector is not None]
        return arrow.ListArray.from_arrays(
            arrow.array(np.cumsum([0, *lengths]), arrow.int32()),
            arrow.array(np.concatenate(present) if present else [], arrow.float32()),
            mask=arrow.array([vector is None for vector in vectors]),
        )
