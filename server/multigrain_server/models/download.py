"""Export of bundles as tar archives, which are made while they are sent."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from multigrain.bundle.folder import TarSource
from multigrain_server.asyncio_utils import to_thread_uncancellable
from multigrain_server.models.registry import BundleEntry, ModelVersion, naming

_CHUNK = 1024 * 1024


class BundleArchive:
    """A bundle that is being sent as a tar archive.

    Args:
        source: its open files.
        version: of the bundle, for messages.

    Attributes:
        size: of the archive in bytes.
        sha256: of the archive, once :meth:`chunks` has ended.
    """

    def __init__(self, source: TarSource, version: ModelVersion) -> None:
        self._source = source
        self._version = version
        self.size = source.size
        self.sha256 = ""

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Pieces of at most 1 MiB, each read in a thread when it is needed.

        Raises:
            MultigrainError: CHECKPOINT, if a file is not what the manifest says.
        """
        digest = hashlib.sha256()
        pieces = self._source.chunks(_CHUNK)

        def following() -> bytes:
            with naming(self._version):
                piece = next(pieces, b"")
            digest.update(piece)
            return piece

        while piece := await to_thread_uncancellable(following):
            yield piece
        self.sha256 = digest.hexdigest()


@asynccontextmanager
async def export_bundle(entry: BundleEntry) -> AsyncIterator[BundleArchive]:
    """Opens all files of a bundle, so that it can be sent also if it is deleted meanwhile.

    Raises:
        MultigrainError: CHECKPOINT, if the bundle on disk is damaged.
    """
    with naming(entry.version):
        source = await to_thread_uncancellable(TarSource, entry.path)
    with source:
        yield BundleArchive(source, entry.version)
