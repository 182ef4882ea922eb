"""Import of bundles as tar archives."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import structlog

from multigrain.bundle.folder import read, refused_archive, unpack_tar, write_manifest
from multigrain.bundle.manifest import MANIFEST_NAME, BundleManifest
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.storage import sync_file
from multigrain_server.asyncio_utils import to_thread_uncancellable
from multigrain_server.models.catalog import ModelView
from multigrain_server.models.registry import (
    BundleEntry,
    BundleRegistry,
    ModelVersion,
    check_name,
)
from multigrain_server.storage_errors import storage_errors

_log = structlog.get_logger(__name__)
_MAX_CHUNK = 2 * 1024 * 1024
_SHA256 = re.compile(r"^[0-9a-fA-F]{64}$")
_MAX_VERSION = 2**63 - 1
# An import leaves this much to running jobs, and looks after each part of an archive.
_RESERVE_BYTES = 64 * 1024 * 1024
_RESERVE_PART = 20  # of a small disk only a twentieth
_CHECK_BYTES = 16 * 1024 * 1024

# Arguments of ``storage_errors``.
_ARCHIVE = ("the archive cannot be stored", "models/ of the data directory")


class BundleImport:
    """Receives one archive; nothing of it is visible before :meth:`finish` has checked it all.

    Args:
        bundles: where the bundle is added.
        is_alias: whether a name is an alias.
        describe: makes the message that describes a model, or fails.
        on_added: called with the new bundle; returns its view.
        max_bytes: of an archive.
        name: "" = the name in the bundle.
        version: 0 = the next free one.
        sha256: of the archive, in hexadecimal; "" = not checked.

    Raises:
        MultigrainError: INVALID_FIELD.
    """

    def __init__(
        self,
        bundles: BundleRegistry,
        is_alias: Callable[[str], bool],
        describe: Callable[[ModelView], object],
        on_added: Callable[[BundleEntry], ModelView],
        *,
        max_bytes: int,
        name: str,
        version: int,
        sha256: str,
    ) -> None:
        if name:
            check_name(name, "start.name")
        if version > _MAX_VERSION:
            raise MultigrainError.field("start.version", f"{version} is too large")
        if sha256 and not _SHA256.match(sha256):
            raise MultigrainError.field("start.sha256", "must be 64 hexadecimal digits")
        self._bundles = bundles
        self._is_alias = is_alias
        self._describe = describe
        self._on_added = on_added
        self._max_bytes = max_bytes
        self._name = name
        self._version = version
        self._expected = sha256.lower()
        self._digest = hashlib.sha256()
        self._received = 0
        self._checked = 0
        with storage_errors(*_ARCHIVE):
            self._work = bundles.work_folder()
            self._file: BinaryIO = (self._work / "archive.tar").open("w+b")

    async def write(self, chunk: bytes) -> None:
        """Adds a chunk. Raises INVALID_FIELD if the chunk or the archive is too large."""
        if len(chunk) > _MAX_CHUNK:
            raise MultigrainError.field(
                "chunk", f"has {len(chunk)} bytes, at most {_MAX_CHUNK} are accepted"
            )
        self._received += len(chunk)
        if self._received > self._max_bytes:
            raise refused_archive(
                f"the archive is larger than {self._max_bytes} bytes (serving.max_bundle_bytes)",
            )
        await to_thread_uncancellable(self._append, chunk)

    async def finish(self) -> ModelView:
        """Checks the archive and makes the bundle visible.

        Raises:
            MultigrainError: INVALID_FIELD (wrong SHA-256, not a bundle), ALREADY_EXISTS, STORAGE.
        """
        if self._expected and self._digest.hexdigest() != self._expected:
            raise MultigrainError.field(
                "start.sha256",
                f"the archive that arrived ({self._received} bytes) has another SHA-256: "
                "send it again",
            )
        folder = self._work / "bundle"
        manifest = await to_thread_uncancellable(self._unpack, folder)
        # One after the other, so that two imports cannot take one version.
        async with self._bundles.adding:
            version = self._version_for(manifest)
            manifest = manifest.model_copy(
                update={"name": version.name, "version": version.version}
            )
            self._check(ModelView(BundleEntry(version, folder, manifest)))
            with storage_errors(*_ARCHIVE):
                await to_thread_uncancellable(write_manifest, folder, manifest)
                await to_thread_uncancellable(self._bundles.add, folder, version)
            entry = self._bundles.added(version, manifest)
        _log.info("bundle imported", model=str(version), bytes=self._received)
        return self._on_added(entry)

    def _version_for(self, manifest: BundleManifest) -> ModelVersion:
        name = self._name or manifest.name
        if self._is_alias(name):
            raise MultigrainError.field(
                "start.name",
                f"{name} is an alias, which would hide the model: give another name, "
                "or remove the alias first",
            )
        return ModelVersion(name, self._version or self._bundles.next_version(name))

    def _check(self, view: ModelView) -> None:
        """Refuses a model that no answer could describe, before anybody sees it."""
        try:
            self._describe(view)
        except (ValueError, TypeError, OverflowError) as error:
            raise refused_archive(
                f"the archive is refused: its {MANIFEST_NAME} cannot be sent: {error}"
            ) from error

    async def close(self) -> None:
        """Removes the temporary files; to be called after :meth:`finish` or instead of it."""
        with suppress(OSError):  # what is still in its buffer
            self._file.close()
        await to_thread_uncancellable(shutil.rmtree, self._work, True)

    def _append(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        with storage_errors(*_ARCHIVE):
            if self._received >= self._checked:
                self._checked = self._received + _CHECK_BYTES
                disk = shutil.disk_usage(self._work)
                if disk.free < min(_RESERVE_BYTES, disk.total // _RESERVE_PART):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._file.write(chunk)

    def _unpack(self, folder: Path) -> BundleManifest:
        with storage_errors(*_ARCHIVE):
            self._file.flush()
            self._file.seek(0)
        unpack_tar(self._file, folder, max_bytes=self._max_bytes)
        try:
            manifest = read(folder, verify=True)
        except MultigrainError as error:
            if error.kind is not ErrorKind.CHECKPOINT:
                raise
            raise refused_archive(error.message) from error
        for path in folder.iterdir():
            if path.name != MANIFEST_NAME and path.name not in manifest.files:
                path.unlink()  # a file without a checksum cannot be verified
            else:
                sync_file(path)
        return manifest
