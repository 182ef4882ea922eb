"""Files of vectors, written row by row so that a million never are in memory together."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from multigrain_client.answers import FloatArray
from multigrain_client.errors import FieldViolation, MissingPackage
from multigrain_client.messages import invalid

# Rows of one Parquet row group: 2,048 vectors of 2,048 numbers are 16 MiB.
ROW_GROUP = 2048


class VectorFile(Protocol):
    """A file that appears whole under its name, or not at all."""

    def begin(self, size: int, model: str) -> None:
        """Called once, before the first row.

        Args:
            size: numbers of a vector.
            model: "name@version" that made them.
        """

    def add(self, path: str, vector: FloatArray | None, error: str) -> None:
        """The next row: a vector, or why there is none."""

    def finish(self) -> None:
        """Makes the file appear."""

    def abort(self) -> None:
        """Removes what has been written."""


def vector_file(out: Path, rows: int) -> VectorFile:
    """The file for a name that ends in .parquet or .npy.

    Raises:
        InvalidRequest: for another name.
        MissingPackage: for Parquet without pyarrow.
    """
    if out.suffix == ".npy":
        return NpyFile(out, rows)
    if out.suffix == ".parquet":
        return ParquetFile(out)
    raise invalid([FieldViolation("out", f"{out.name!r} ends in neither .parquet nor .npy")])


class NpyFile:
    """float32 (N, D) as .npy, the row of a bad image not-a-number throughout; beside it a .csv
    with row, path and error."""

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
    """Columns ``path`` (string), ``embedding`` (list<float> of D numbers, null for a
    bad image) and ``error`` (string, null for a good one); the model is in the metadata."""

    def __init__(self, out: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise MissingPackage(
                "a Parquet file needs pyarrow: pip install 'multigrain[parquet]', or write .npy"
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
                # Not of fixed size: Arrow cannot read such lists back where one is null.
                ("embedding", arrow.list_(arrow.float32())),
                ("error", arrow.string()),
            ],
            metadata={"multigrain.model": model},
        )
        # Zstandard: float32 vectors hardly shrink, paths do, and it is cheap.
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
