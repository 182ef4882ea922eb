"""Names of models, and the bundles on disk: ``<models_dir>/<name>/<version>/model.json``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from multigrain.bundle.folder import read
from multigrain.bundle.manifest import MANIFEST_NAME, BundleManifest
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.specs.export import NAME_PATTERN
from multigrain.storage import os_error_hint, sync_folder
from multigrain_server.storage_errors import Stamp, stamp

_log = structlog.get_logger(__name__)

# Work folders beside the models; the dot keeps them from being read as a model.
_WORK = ".aside"
_NAME = re.compile(NAME_PATTERN)
_MAX_VERSION = 2**63 - 1
_MAX_DIGITS = len(str(_MAX_VERSION))


@dataclass(frozen=True, order=True)
class ModelVersion:
    """One version of one model."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class ModelReference:
    """A model as a request names it: ``name`` may be an alias; ``version`` None = not stated."""

    name: str
    version: int | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"

    @classmethod
    def parse(cls, text: str, field: str = "model") -> ModelReference:
        """Reads "name" or "name@version".

        Raises:
            MultigrainError: INVALID_FIELD naming ``field``.
        """
        name, at, version = text.partition("@")
        # Not match(): its "$" lets a line break pass at the end.
        if not _NAME.fullmatch(name):
            raise MultigrainError.field(
                field,
                f"{text[:80]!r} is not a model name: use 1 to 64 letters, digits, dots, dashes "
                'or underscores, optionally followed by "@" and a version',
            )
        if not at:
            return cls(name)
        digits = version.isascii() and version.isdigit() and len(version) <= _MAX_DIGITS
        if not (digits and 1 <= int(version) <= _MAX_VERSION):
            raise MultigrainError.field(
                field, f'{text[:80]!r}: what follows "@" must be a version, a whole number from 1'
            )
        return cls(name, int(version))


def check_name(text: str, field: str) -> str:
    """A name without a version. Raises MultigrainError INVALID_FIELD."""
    reference = ModelReference.parse(text, field)
    if reference.version is not None:
        raise MultigrainError.field(field, f'{text[:80]!r}: must not contain "@"')
    return text


@dataclass(frozen=True)
class BundleEntry:
    """One bundle."""

    version: ModelVersion
    path: Path
    manifest: BundleManifest


@dataclass(frozen=True)
class RefusedBundle:
    """A folder in the place of a bundle that cannot be used; ``reason`` says why."""

    version: ModelVersion
    path: Path
    reason: str


@dataclass(frozen=True)
class _Cached:
    stamp: Stamp | None
    entry: BundleEntry


@dataclass(frozen=True)
class _Unusable:
    stamp: Stamp | None
    reason: str


class BundleRegistry:
    """Reads the folder with each call: a bundle appears when its folder does.

    Manifests are cached until their file changes. One that cannot be used is logged once and
    refused.

    Args:
        models_dir: the folder; created if it does not exist.

    Attributes:
        adding: held while a bundle is added.
    """

    def __init__(self, models_dir: Path) -> None:
        self._root = models_dir
        self._root.mkdir(parents=True, exist_ok=True)
        self.adding = asyncio.Lock()
        self._cache: dict[Path, _Cached] = {}
        self._unusable: dict[Path, _Unusable] = {}

    def entries(self) -> dict[ModelVersion, BundleEntry]:
        """All bundles, by name and version."""
        found: dict[ModelVersion, BundleEntry] = {}
        seen = {self._root}
        for name in self._folders(self._root):
            seen.add(name)
            for version in self._folders(name):
                seen.add(version / MANIFEST_NAME)
                entry = self._read(version / MANIFEST_NAME)
                if entry is not None:
                    found[entry.version] = entry
        for known in (self._cache, self._unusable):
            for path in known.keys() - seen:
                del known[path]
        return dict(sorted(found.items()))

    def refused(self) -> dict[ModelVersion, RefusedBundle]:
        """Folders in the place of bundles that cannot be used, as :meth:`entries` last found."""
        found = {}
        for path, unusable in self._unusable.items():
            version = self._version_of(path.parent) if path.name == MANIFEST_NAME else None
            if version is not None:
                found[version] = RefusedBundle(version, path.parent, unusable.reason)
        return dict(sorted(found.items()))

    def find(self, reference: ModelReference) -> BundleEntry:
        """The bundle of that version; without one, the newest. Raises NOT_FOUND."""
        entries = self.entries()
        versions = [key for key in entries if key.name == reference.name]
        if reference.version is not None:
            versions = [key for key in versions if key.version == reference.version]
        if not versions:
            raise self._unknown(reference, entries)
        return entries[max(versions)]

    def has_name(self, name: str) -> bool:
        return any(key.name == name for key in self.entries())

    def next_version(self, name: str) -> int:
        """One more than the largest number in use, readable or not."""
        folder = self._root / name
        numbers = [_number(path.name) for path in folder.iterdir()] if folder.is_dir() else []
        return max(numbers, default=0) + 1

    def folder(self, version: ModelVersion) -> Path:
        return self._root / version.name / str(version.version)

    def work_folder(self) -> Path:
        """A new folder on the same file system, for what is not a bundle yet."""
        work = self._root / _WORK
        work.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=work))

    def clean(self) -> None:
        """Removes work folders that an earlier process left behind."""
        shutil.rmtree(self._root / _WORK, ignore_errors=True)

    def add(self, folder: Path, version: ModelVersion) -> None:
        """Moves a finished bundle folder, whose files are on the disk, durably into place.

        For a thread; to be followed by :meth:`added` in the event loop's.

        Raises:
            MultigrainError: ALREADY_EXISTS.
            OSError: if it cannot be moved.
        """
        target = self.folder(version)
        target.parent.mkdir(exist_ok=True)
        try:
            os.rename(folder, target)
            sync_folder(target.parent)
            sync_folder(self._root)
        except OSError as error:
            if target.exists():
                raise MultigrainError(
                    ErrorKind.ALREADY_EXISTS,
                    f"{version} exists: choose another version, or 0 for the next free one",
                ) from error
            raise

    def added(self, version: ModelVersion, manifest: BundleManifest) -> BundleEntry:
        """The bundle that :meth:`add` has moved; its manifest need not be read again."""
        path = self.folder(version)
        entry = BundleEntry(version, path, manifest)
        self._cache[path / MANIFEST_NAME] = _Cached(stamp(path / MANIFEST_NAME), entry)
        return entry

    def remove(self, version: ModelVersion) -> None:
        """Deletes a bundle: it disappears at once and durably, its files a moment later."""
        folder = self.folder(version)
        work = self.work_folder()
        os.rename(folder, work / "bundle")
        sync_folder(folder.parent)
        shutil.rmtree(work, ignore_errors=True)
        with contextlib.suppress(OSError):  # other versions remain
            folder.parent.rmdir()

    def _folders(self, parent: Path) -> list[Path]:
        """Folders and files in ``parent``; none, and a log line, if they cannot be listed."""
        try:
            found = [path for path in parent.iterdir() if not path.name.startswith(".")]
        except NotADirectoryError:
            return []
        except OSError as error:
            self._report(parent, None, "models folder cannot be listed", error)
            return []
        self._unusable.pop(parent, None)
        return sorted(found)

    def _read(self, path: Path) -> BundleEntry | None:
        now = stamp(path)
        cached = self._cache.get(path)
        if now is not None and cached is not None and cached.stamp == now:
            return cached.entry
        unusable = self._unusable.get(path)
        if now is not None and unusable is not None and unusable.stamp == now:
            return None
        try:
            manifest = read(path.parent)
        except MultigrainError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                self._unusable.pop(path, None)
            elif isinstance(error.__cause__, OSError):
                self._report(path, now, "bundle manifest is not usable", error.__cause__)
            else:
                self._report(path, now, "bundle manifest is not usable", error)
            return None
        version = ModelVersion(manifest.name, manifest.version)
        if path.parent != self.folder(version):
            wrong = ValueError(f"it says {version}: move the folder there, or delete it")
            self._report(path, now, "bundle manifest is not usable", wrong)
            return None
        entry = BundleEntry(version, path.parent, manifest)
        self._cache[path] = _Cached(now, entry)
        self._unusable.pop(path, None)
        return entry

    def _report(self, path: Path, now: Stamp | None, event: str, error: Exception) -> None:
        """Logs that a file or folder is not usable: once, not with every call."""
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"{error.strerror}; {os_error_hint(error, 'read it', 'check the disk')}"
        if self._unusable.get(path) != _Unusable(now, reason):
            _log.warning(event, path=str(path.relative_to(self._root)), reason=reason)
        self._unusable[path] = _Unusable(now, reason)

    def _version_of(self, folder: Path) -> ModelVersion | None:
        """The version whose place a folder has; None if it has none."""
        version = ModelVersion(folder.parent.name, _number(folder.name))
        named = _NAME.fullmatch(version.name) is not None and version.version >= 1
        return version if named and folder == self.folder(version) else None

    def _unknown(
        self, reference: ModelReference, entries: dict[ModelVersion, BundleEntry]
    ) -> MultigrainError:
        versions = [str(key.version) for key in entries if key.name == reference.name]
        refused = [
            bundle.reason
            for key, bundle in self.refused().items()
            if key.name == reference.name and reference.version in (None, key.version)
        ]
        unusable = any(path.is_relative_to(self._root / reference.name) for path in self._unusable)
        if refused or (unusable and not versions):
            hint = "the server has its folder but cannot use what is in it: see the server's log"
            hint += f" ({refused[-1]})" if refused else ""
        elif versions:
            hint = f"it has version {', '.join(versions)}"
        elif entries:
            names = sorted({key.name for key in entries})
            hint = f"there is {', '.join(names[:10])}"
        else:
            hint = "there are no models yet: export or import one first"
        return MultigrainError(ErrorKind.NOT_FOUND, f"no model {reference}; {hint}")


def _number(name: str) -> int:
    """The number that is the name of a folder; 0 if it is none."""
    plain = name.isascii() and name.isdigit() and len(name) <= _MAX_DIGITS
    return int(name) if plain and int(name) <= _MAX_VERSION else 0


def verify(entry: BundleEntry) -> None:
    """Reads every file of the bundle and compares size and SHA-256 (takes seconds per gigabyte).

    Raises:
        MultigrainError: CHECKPOINT naming the version and the file.
    """
    with naming(entry.version):
        read(entry.path, verify=True)


@contextlib.contextmanager
def naming(version: ModelVersion) -> Iterator[None]:
    """Adds the version to the message of an error of a bundle's files."""
    try:
        yield
    except MultigrainError as error:
        raise MultigrainError(error.kind, f"{version}: {error.message}") from error
