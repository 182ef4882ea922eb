"""Files that the server sends in pieces: bundles of models and artifacts of jobs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from multigrain.v1.job_pb2 import GetArtifactResponse
from multigrain.v1.model_pb2 import DownloadModelResponse
from multigrain_client.errors import ServerError
from multigrain_client.output_file import OutputFile


class DownloadWriter:
    """Writes a downloaded file, which appears under its name when it is complete.

    A context manager that removes the temporary file unless ``finish`` was called.

    Args:
        path: the file.
        what: is downloaded, for errors: "the bundle".
    """

    def __init__(self, path: str | os.PathLike[str], what: str) -> None:
        self._file = OutputFile(path)
        self._what = what
        self._digest = hashlib.sha256()
        self._expected = ""
        self._total: int | None = None
        self._size = 0

    def __enter__(self) -> DownloadWriter:
        self._file.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.discard()

    def write(self, message: DownloadModelResponse | GetArtifactResponse) -> None:
        """Writes the next piece.

        Raises:
            ServerError: if there are more bytes than the server announced.
        """
        if self._total is None:
            self._total = message.total_bytes
        self._file.stream.write(message.chunk)
        self._digest.update(message.chunk)
        self._size += len(message.chunk)
        self._expected = message.sha256 or self._expected
        if self._size > self._total:  # it would fill the disk otherwise
            raise ServerError(f"received more than the {self._total} bytes of {self._what}")

    def finish(self) -> Path:
        """Checks size and SHA-256 and renames the file to its final name.

        Raises:
            ServerError: if the file does not match what the server announced.
        """
        if self._total is None or self._size != self._total:
            raise ServerError(f"received {self._size} of {self._total or 0} bytes of {self._what}")
        if self._digest.hexdigest() != self._expected:
            raise ServerError(
                f"what was received of {self._what} is damaged: its SHA-256 does not match the "
                "server's"
            )
        return self._file.finish()
