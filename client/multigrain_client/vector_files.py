"""Files of vectors, written row by row: .npy with a list of its rows, or Parquet.

A million vectors never are in memory together. What is written so far can be kept as a smaller
file of the same kind.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from multigrain_client.errors import FieldViolation, MissingPackage
from multigrain_client.images import FloatArray
from multigrain_client.json_format import invalid
from multigrain_client.output_file import OutputFile

# Rows of one Parquet row group: 2,048 vectors of 2,048 numbers are 16 MiB.
ROW_GROUP = 2048
LIST_HEAD = b"row,path,error\r\n"
# Bytes for the end of a Parquet file, and for path and error of one row, in its reserve.
_END_BYTES = 1 << 20
_ROW_BYTES = 512


class VectorFile(Protocol):
    """A file that appears under its name only when it is complete."""

    def open(self) -> None:
        """Called once, before the work.

        Raises:
            InvalidRequest: if the file cannot be written.
        """

    def begin(self, size: int, model: str) -> None:
        """Called once, before the first row.

        Args:
            size: length of a vector.
            model: "name@version" of the model.

        Raises:
            OSError: if the disk has too little space.
        """

    def add(self, path: str, vector: FloatArray | None, error: str) -> None:
        """Writes the next row: a vector, or the reason why there is none."""

    def finish(self) -> None:
        """Moves the file to its name."""

    def keep(self) -> tuple[int, list[Path]]:
        """Keeps the rows written so far under another name ("vectors.part.npy").

        Returns:
            the number of rows, and the files; (0, []) if nothing could be kept.
        """

    def close(self) -> None:
        """Removes what is neither finished nor kept."""


def vector_file(out: Path, rows: int) -> VectorFile:
    """The writer for a .parquet or .npy file.

    Raises:
        InvalidRequest: for another suffix.
        MissingPackage: for Parquet without pyarrow.
    """
    if out.suffix == ".npy":
        return NpyFile(out, rows)
    if out.suffix == ".parquet":
        return ParquetFile(out, rows)
    raise invalid([FieldViolation("out", f"{out.name!r} must end in .parquet or .npy")])


class NpyFile:
    """float32 (N, D) as .npy, with NaN rows for failed images, and a .csv file with row, path and
    error next to it."""

    def __init__(self, out: Path, rows: int) -> None:
        self._rows = rows
        self._size = 0
        self._written = 0
        # Plain writes: a full disk is an error, not a signal as with a memory map.
        self._file = OutputFile(out, buffered=False)
        self._list = OutputFile(out.with_suffix(".csv"), buffered=False)
        self._list_bytes = 0

    def open(self) -> None:
        _check_is_list(self._list.path)
        self._file.__enter__()
        self._list.__enter__()

    def begin(self, size: int, model: str) -> None:
        self._size = size
        header = self._header(self._rows)
        _check_space(self._file.target, len(header) + self._rows * size * 4)
        _write(self._file, header)
        _write(self._list, LIST_HEAD)
        self._list_bytes = len(LIST_HEAD)

    def add(self, path: str, vector: FloatArray | None, error: str) -> None:
        row = np.full(self._size, np.nan, "<f4") if vector is None else vector.astype("<f4")
        text = io.StringIO(newline="")
        csv.writer(text).writerow([self._written, path, error])
        line = text.getvalue().encode()
        _write(self._file, row.tobytes())
        _write(self._list, line)
        self._list_bytes += len(line)
        self._written += 1

    def finish(self) -> None:
        # Both, before one of them gets its name.
        self._file.sync()
        self._list.sync()
        self._list.finish()
        self._file.finish()

    def keep(self) -> tuple[int, list[Path]]:
        if not self._written:
            return 0, []
        # First without a row that was written in part, which frees space. A file that is closed is
        # complete and could not be renamed.
        header = self._header(self._written)
        if not self._file.stream.closed:
            self._file.stream.truncate(len(header) + self._written * self._size * 4)
        if not self._list.stream.closed:
            self._list.stream.truncate(self._list_bytes)
        if not self._file.stream.closed:
            self._file.stream.seek(0)
            _write(self._file, header)
        return self._written, [file.keep(_part(file.path)) for file in (self._file, self._list)]

    def close(self) -> None:
        self._file.discard()
        self._list.discard()

    def _header(self, rows: int) -> bytes:
        """NumPy leaves room in it for another number of rows."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]
            header, {"descr": "<f4", "fortran_order": False, "shape": (rows, self._size)}
        )
        return header.getvalue()


class ParquetFile:
    """Columns ``path`` (string), ``embedding`` (list<float> of length D, null for a failed image)
    and ``error`` (string, null without an error); the model is in the metadata.

    A Parquet file can only be read when its end is written, and Arrow's writer is of no use after
    an error. So a reserve on the disk has room for one row group and the end: when the disk is
    full, it is released, the row group goes on, and then the file is ended.
    """

    def __init__(self, out: Path, rows: int) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise MissingPackage(
                "writing Parquet needs pyarrow: pip install 'multigrain[parquet]', or write .npy"
            ) from error
        self._arrow: Any = pyarrow
        self._count = rows
        self._file = OutputFile(out, buffered=False)
        self._reserve: Any = None
        self._writer: Any = None
        self._written = 0
        self._rows: list[tuple[str, FloatArray | None, str]] = []

    def open(self) -> None:
        self._file.__enter__()

    def begin(self, size: int, model: str) -> None:
        arrow = self._arrow
        reserved = min(self._count, ROW_GROUP) * (size * 4 + _ROW_BYTES) + _END_BYTES
        _check_space(self._file.target, self._count * size * 4 + reserved)
        self._reserve = _Reserve(self._file, reserved)
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
        self._writer = arrow.parquet.ParquetWriter(self._reserve, self._schema, compression="zstd")

    def add(self, path: str, vector: FloatArray | None, error: str) -> None:
        self._rows.append((path, vector, error))
        if len(self._rows) == ROW_GROUP:
            self._flush()
            if self._reserve.full is not None and self._written < self._count:
                raise self._reserve.full

    def finish(self) -> None:
        self._end()
        self._file.finish()

    def keep(self) -> tuple[int, list[Path]]:
        if self._writer is None:
            return 0, []
        # ArrowInvalid, of a writer that has failed before, is a ValueError.
        try:
            self._end()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                self._writer.close()
        rows: int
        try:
            rows = self._arrow.parquet.read_metadata(self._file.reader()).num_rows
        except (OSError, ValueError):
            # The disk is so full that the file has no end.
            return 0, []
        return rows, [self._file.keep(_part(self._file.path))]

    def close(self) -> None:
        if self._reserve is not None:
            self._reserve.release()
        if self._writer is not None:
            with suppress(OSError, ValueError):
                self._writer.close()
        self._file.discard()

    def _end(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

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
        self._written += len(self._rows)
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


class _Reserve(io.RawIOBase):
    """The file as Arrow writes it, with space set aside for when the disk is full.

    Args:
        file: the file.
        size: bytes of the reserve.

    Attributes:
        full: the error of the full disk, after which the reserve was released.
    """

    def __init__(self, file: OutputFile, size: int) -> None:
        self.full: OSError | None = None
        self._file = file
        self._written = 0
        self._reserve = OutputFile(file.target, buffered=False).__enter__()
        # Random bytes, which no file system stores in less space.
        block = os.urandom(min(size, _END_BYTES))
        try:
            for start in range(0, size, len(block)):
                _write(self._reserve, block[: size - start])
        except OSError:
            self.release()
            raise

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Writes everything: Arrow does not look at how much was taken."""
        try:
            _write(self._file, data)
        except OSError as error:
            if self.full is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.full = error
            self.release()
            # From the start of this write, of which a part may be there.
            self._file.stream.seek(self._written)
            _write(self._file, data)
        self._written += len(data)
        return len(data)

    def release(self) -> None:
        """Removes the reserve."""
        self._reserve.discard()


def _part(path: Path) -> str:
    return f"{path.stem}.part{path.suffix}"


def _write(file: OutputFile, data: bytes) -> None:
    """Writes everything; an unbuffered file may take a part of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.stream.write(rest) :]


def _check_is_list(path: Path) -> None:
    """Raises:
    InvalidRequest: if a file that this program did not write would be replaced by the list.
    """
    try:
        with path.open("rb") as file:
            ours = file.read(len(LIST_HEAD)).rstrip() in (LIST_HEAD.rstrip(), b"")
    except OSError:
        # There is none, or opening the file for writing says what is wrong.
        return
    if not ours:
        raise invalid(
            [
                FieldViolation(
                    "out",
                    f"{path} would be replaced by the list of rows, but is another file: rename "
                    "it, or choose another name",
                )
            ]
        )


def _check_space(path: Path, needed: int) -> None:
    """Raises:
    OSError: if the disk has less free space than that.
    """
    free = shutil.disk_usage(path.parent)
    if free.total and free.free < needed:
        raise OSError(
            errno.ENOSPC,
            f"the vectors need {needed / 2**20:,.0f} MiB and the disk has {free.free / 2**20:,.0f} "
            "MiB free",
            str(path),
        )
