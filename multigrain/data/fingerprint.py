"""Dataset fingerprints: is this still the dataset that a checkpoint was trained on?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pydantic import Field

from multigrain.errors import shorten
from multigrain.specs.base import Spec
from multigrain.text import normalize

if TYPE_CHECKING:
    from multigrain.data.image_folder import ImageFolder

_THREADS = 8  # a network file system serves requests in parallel
_DIGITS = 16  # hexadecimal digits of a class's hash: 64 bits
_SHOWN = 5  # most changes that a message names


class ClassFingerprint(Spec):
    """The images of one class: their number, and a hash of their paths and sizes."""

    images: int
    sum: str


class DatasetFingerprint(Spec):
    """Hash of the names and sizes of a dataset's files.

    No file is opened: an image replaced by another one of the same size is not detected.
    Modification times are ignored, because copies and restored backups have new ones.
    """

    images: int
    sha256: str
    classes: dict[str, ClassFingerprint] = Field(default_factory=dict)

    def difference(self, now: DatasetFingerprint) -> str:
        """Describes what has changed since; "" if nothing has."""
        if self.sha256 == now.sha256:
            return ""
        parts = []
        removed = [name for name in self.classes if name not in now.classes]
        new = [name for name in now.classes if name not in self.classes]
        if {normalize(name) for name in removed} & {normalize(name) for name in new}:
            parts.append("some class names are in another Unicode form, as after a copy from a Mac")
        if removed:
            parts.append(f"without the {_class_names(removed)}")
        if new:
            parts.append(f"with the new {_class_names(new)}")
        for name, before in self.classes.items():
            after = now.classes.get(name)
            if after is None or after == before:
                continue
            if after.images != before.images:
                parts.append(f"{name!r} has {after.images} images instead of {before.images}")
            else:
                parts.append(f"{name!r} has as many images, but other names or sizes")
        count = f"{now.images} images in {len(now.classes)} classes"
        if (now.images, len(now.classes)) != (self.images, len(self.classes)):
            count += f" instead of {self.images} in {len(self.classes)}"
        shown = parts[:_SHOWN]
        more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
        return f"{count}: {'; '.join(shown)}{more}"


def fingerprint(
    folder: ImageFolder, alive: Callable[[], None] = lambda: None
) -> DatasetFingerprint:
    """Computes the fingerprint of a dataset from the names and sizes of its files.

    Args:
        folder: the images.
        alive: called after each class.
    """
    parts: list[list[str]] = [[] for _ in folder.classes]
    for path, label in zip(folder.paths, folder.labels.tolist(), strict=True):
        parts[label].append(path)
    whole = hashlib.sha256()
    classes = {}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="sizes") as pool:
        digests = pool.map(lambda paths: _hash(folder.root, paths), parts)
        for name, paths, digest in zip(folder.classes, parts, digests, strict=True):
            classes[name] = ClassFingerprint(images=len(paths), sum=digest[:_DIGITS])
            whole.update(f"{name}\0{digest}\n".encode())
            alive()
    return DatasetFingerprint(images=len(folder), sha256=whole.hexdigest(), classes=classes)


def _hash(root: os.PathLike[str], paths: list[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = os.stat(os.path.join(root, path)).st_size
        except OSError:  # it is reported when it is read
            size = -1
        digest.update(os.fsencode(path) + b"\0" + str(size).encode() + b"\n")
    return digest.hexdigest()


def _class_names(names: list[str]) -> str:
    shown = shorten([repr(name) for name in names], _SHOWN)
    return f"class{'es' if len(names) > 1 else ''} {shown}"
