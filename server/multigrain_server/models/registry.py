"""The bundles on disk: ``<models_dir>/<name>/<version>/model.json``."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from multigrain.bundle.folder import read
from multigrain.bundle.manifest import MANIFEST_NAME, BundleManifest
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.storage import remedy, sync_folder
from multigrain_server.models.reference import ModelReference, ModelVersion

_LOG = logging.getLogger(__name__)
# Work folders beside the models; the dot keeps them from being taken for a model.
_ASIDE = ".aside"


# When content and rights of a file changed, in ns, and its bytes.
_Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class BundleEntry:
    """One bundle."""

    version: ModelVersion
    path: Path
    manifest: BundleManifest


@dataclass(frozen=True)
class _Cached:
    stamp: _Stamp
    entry: BundleEntry


class BundleRegistry:
    """Reads the folder anew whenever it is asked: a bundle appears when its folder does.

    Manifests are kept as long as their file does not change. One that cannot be read is
    logged once and left out.
    """

    def __init__(self, models_dir: Path) -> None:
        self._root = models_dir
        self._root.mkdir(parents=True, exist_ok=True)
        self._cache: dict[Path, _Cached] = {}
        self._refused: dict[Path, _Stamp] = {}

    def entries(self) -> dict[ModelVersion, BundleEntry]:
        """All bundles, by name and version."""
        found: dict[ModelVersion, BundleEntry] = {}
        for name in self._folders(self._root):
            for version in self._folders(name):
                entry = self._read(version / MANIFEST_NAME)
                if entry is not None:
                    found[entry.version] = entry
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
        numbers = (
            [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if (folder.is_dir()) else []
        )
        return max(numbers, default=0) + 1

    def folder(self, version: ModelVersion) -> Path:
        return self._root / version.name / str(version.version)

    def work_folder(self) -> Path:
        """A new folder on the same file system, for what is not a bundle yet."""
        aside = self._root / _ASIDE
        aside.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=aside))

    def clean(self) -> None:
        """Removes what an earlier process left half-done."""
        shutil.rmtree(self._root / _ASIDE, ignore_errors=True)

    def add(self, folder: Path, version: ModelVersion) -> BundleEntry:
        """Moves a finished bundle folder, whose files are on the disk, durably into place.

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
        return self.find(ModelReference(version.name, version.version))

    def remove(self, version: ModelVersion) -> None:
        """Deletes a bundle: gone at once and for good, its files a moment later."""
        folder = self.folder(version)
        aside = self.work_folder()
        os.rename(folder, aside / "bundle")
        sync_folder(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):  # other versions remain
            folder.parent.rmdir()

    def _folders(self, parent: Path) -> list[Path]:
        """Below ``parent``; none, and a word in the log, where they cannot be listed."""
        try:
            found = [path for path in parent.iterdir() if not path.name.startswith(".")]
        except NotADirectoryError:
            return []
        except OSError as error:
            self._refuse(parent, (0, 0, 0), "cannot be listed", error)
            return []
        self._refused.pop(parent, None)
        return sorted(found)

    def _read(self, path: Path) -> BundleEntry | None:
        stamp = (0, 0, 0)
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
            cached = self._cache.get(path)
            if cached is not None and cached.stamp == stamp:
                return cached.entry
            if self._refused.get(path) == stamp:
                return None
            manifest = BundleManifest.model_validate_json(path.read_bytes())
            version = ModelVersion(manifest.name, manifest.version)
            if path.parent != self.folder(version):
                raise ValueError(f"it says {version}")
        except (FileNotFoundError, NotADirectoryError):
            self._refused.pop(path, None)
            return None
        except (OSError, ValueError, ValidationError) as error:
            self._refuse(path, stamp, "is not a usable bundle manifest", error)
            return None
        entry = BundleEntry(version, path.parent, manifest)
        self._cache[path] = _Cached(stamp, entry)
        self._refused.pop(path, None)
        return entry

    def _refuse(self, path: Path, stamp: _Stamp, what: str, error: Exception) -> None:
        if self._refused.get(path) != stamp:  # once, not with every look
            reason = str(error)
            if isinstance(error, OSError):
                reason = f"{error.strerror}; {remedy(error, 'read it', 'check the disk')}"
            _LOG.warning("%s %s: %s", path.relative_to(self._root), what, reason)
        self._refused[path] = stamp

    def _unknown(
        self, reference: ModelReference, entries: dict[ModelVersion, BundleEntry]
    ) -> MultigrainError:
        versions = [str(key.version) for key in entries if key.name == reference.name]
        if versions:
            hint = f"it has version {', '.join(versions)}"
        elif any(path.is_relative_to(self._root / reference.name) for path in self._refused):
            hint = "the server has its folder but cannot use what is in it: see the server's log"
        elif entries:
            names = sorted({key.name for key in entries})
            hint = f"there is {', '.join(names[:10])}"
        else:
            hint = "there is none yet: export or import one first"
        return MultigrainError(ErrorKind.NOT_FOUND, f"no model {reference}; {hint}")


def verify(entry: BundleEntry) -> None:
    """Reads every file of the bundle and compares size and SHA-256 (seconds per gigabyte).

    Raises:
        MultigrainError: CHECKPOINT naming the version and the file.
    """
    try:
        read(entry.path, verify=True)
    except MultigrainError as error:
        raise MultigrainError(error.kind, f"{entry.version}: {error.message}") from error
    except OSError as error:
        raise MultigrainError(
            ErrorKind.CHECKPOINT,
            f"{entry.version}: a file of the bundle cannot be read ({error.strerror}): "
            "check its permissions and the disk",
        ) from error
