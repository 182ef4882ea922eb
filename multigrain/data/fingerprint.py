"""Whether a dataset is still the one that a checkpoint was trained on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pydantic import Field

from multigrain.specs.base import Spec

if TYPE_CHECKING:
    from multigrain.data.image_folder import ImageFolder

_THREADS = 8  # a network file system answers many questions at a time
_DIGITS = 16  # of a class's sum: 64 bits
_SHOWN = 5  # how much of what changed a message names


class ClassPrint(Spec):
    """The images of one class: how many, and a sum over their paths and sizes."""

    images: int
    sum: str


class DatasetFingerprint(Spec):
    """What is remembered of a dataset: names and sizes of its files. None is opened, so that an
    image replaced by another one of exactly its size is not noticed. Dates are left out: those of
    a copy, or of a backup that was put back, are new."""

    images: int
    sha256: str
    classes: dict[str, ClassPrint] = Field(default_factory=dict)

    def difference(self, now: DatasetFingerprint) -> str:
        """What has changed since, in words; "" if nothing has."""
        if self.sha256 == now.sha256:
            return ""
        parts = []
        gone = [name for name in self.classes if name not in now.classes]
        new = [name for name in now.classes if name not in self.classes]
        if gone:
            parts.append(f"without the {_named(gone)}")
        if new:
            parts.append(f"with the new {_named(new)}")
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
    """The fingerprint of a dataset; of each file only the size is asked for.

    Args:
        folder: the images.
        alive: called now and then.
    """
    parts: list[list[str]] = [[] for _ in folder.classes]
    for path, label in zip(folder.paths, folder.labels.tolist(), strict=True):
        parts[label].append(path)
    whole = hashlib.sha256()
    classes = {}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="sizes") as pool:
        sums = pool.map(lambda paths: _sum(folder.root, paths), parts)
        for name, paths, digest in zip(folder.classes, parts, sums, strict=True):
            classes[name] = ClassPrint(images=len(paths), sum=digest[:_DIGITS])
            whole.update(f"{name}\0{digest}\n".encode())
            alive()
    return DatasetFingerprint(images=len(folder), sha256=whole.hexdigest(), classes=classes)


def _sum(root: os.PathLike[str], paths: list[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = os.stat(os.path.join(root, path)).st_size
        except OSError:  # it is reported when its turn comes to be read
            size = -1
        digest.update(os.fsencode(path) + b"\0" + str(size).encode() + b"\n")
    return digest.hexdigest()


def _named(names: list[str]) -> str:
    """The first few, after the word "class"."""
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"class{'es' if len(names) > 1 else ''} {shown}{more}"
