"""A dataset on disk: one sub-folder of image files per class. Does not decode images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multigrain.data.layout import check_layout, layout_warning, quoted
from multigrain.data.listing import LeftOut, Lister, Listing, Reason
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import (
    FileTooLargeError,
    NotRegularError,
    OutsideRootsError,
    Roots,
    read_bytes,
)
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits
from multigrain.storage import os_error_hint
from multigrain.text import normalize, printable


@dataclass(frozen=True)
class ImageFolder:
    """The images of a dataset, in an order that depends on their names alone.

    Args:
        root: the folder.
        classes: names of the classes; an image's label is an index into them.
        paths: image files relative to ``root``; an image's index here is its instance id.
        labels: int32 (images,).
        limits: limits of an image file, for whoever decodes it.
        left_out: what else is in the folder.
        warning: what is unusual about the folder's layout; "" if nothing is.
    """

    root: Path
    classes: tuple[str, ...]
    paths: list[str]
    labels: NDArray[np.int32]
    limits: ImageLimits = DEFAULT_LIMITS
    left_out: LeftOut = field(default_factory=LeftOut)
    warning: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before a job starts: an unusual layout, and images that may be
        missing. One line each."""
        root = printable(str(self.root))
        found = [f"dataset {root}: {self.warning}"] if self.warning else []
        if self.left_out.suspect:
            found.append(self.left_out_line)
        return tuple(found)

    @property
    def left_out_line(self) -> str:
        """What is in the folder beside the images, in one line; "" if nothing is."""
        if not self.left_out:
            return ""
        root = printable(str(self.root))
        return f"dataset {root}: {len(self)} images; left out: {self.left_out.describe()}"

    def read(self, index: int) -> bytes:
        """Reads an image file.

        Raises:
            MultigrainError: IMAGE_UNREADABLE, if the file cannot be read; IMAGE_TOO_LARGE.
        """
        limits = self.limits
        path = os.path.join(self.root, self.paths[index])
        try:
            return read_bytes(path, max_bytes=limits.max_bytes, roots=limits.roots)
        except FileTooLargeError as error:
            raise MultigrainError(
                ErrorKind.IMAGE_TOO_LARGE,
                f"the file has {error.size} bytes, more than the limit of {limits.max_bytes}: save "
                "it smaller or more compressed, or raise serving.max_image_bytes of the daemon",
            ) from error
        except OSError as error:
            replaced = isinstance(error, NotRegularError | OutsideRootsError)
            todo = "remove it" if replaced else "check its permissions and the disk"
            raise MultigrainError(
                ErrorKind.IMAGE_UNREADABLE, f"the file cannot be read ({error.strerror}): {todo}"
            ) from error

    def subset(self, indices: NDArray[np.intp]) -> ImageFolder:
        """Returns some of the images, with the same classes.

        Args:
            indices: of the images, in ascending order.
        """
        paths = [self.paths[index] for index in indices.tolist()]
        return replace(self, paths=paths, labels=self.labels[indices])

    def relabeled(self, labels: tuple[str, ...]) -> ImageFolder:
        """Returns the same images with the class indices of a trained model.

        A folder that lacks some of the classes has other indices than the model: class names
        decide.

        Args:
            labels: the model's class names, in the order of its outputs.

        Raises:
            MultigrainError: DATASET, naming the classes that the model does not have.
        """
        if self.classes == labels:
            return self
        order = class_order(self.classes, labels)
        unknown = [name for name, number in zip(self.classes, order, strict=True) if number < 0]
        if unknown:
            hint = f" ({self.warning})" if self.warning else ""
            raise MultigrainError(
                ErrorKind.DATASET,
                f"{len(unknown)} class folders of {printable(str(self.root))} are not classes of "
                f"the model: {quoted(unknown)}; the model has {quoted(labels)}. Name the folders "
                f"as in training{hint}",
            )
        return replace(self, classes=labels, labels=np.array(order, np.int32)[self.labels])


def class_order(names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """The index of each name in a model's class names; -1 if it is not among them.

    Names are compared normalized: a Mac writes "é" as two characters.
    """
    number = {normalize(name): index for index, name in enumerate(labels)}
    number |= {name: index for index, name in enumerate(labels)}
    return [number.get(name, number.get(normalize(name), -1)) for name in names]


def lister(root: Path, roots: Roots) -> Lister:
    """Lists folders with the formats that this installation reads."""
    return Lister(root, optional=find_spec("pillow_heif") is not None, roots=roots)


def scan(root: Path, limits: ImageLimits = DEFAULT_LIMITS) -> ImageFolder:
    """Lists a dataset: ``root/<class>/**/<image>``.

    Classes are the sub-folders, sorted by name; ``multigrain.data.listing`` says what is listed.

    Args:
        root: the dataset.
        limits: limits of an image file, and the data roots.

    Returns:
        Its images, sorted by class and path.

    Raises:
        MultigrainError: DATASET, if the folder does not exist or has no class folders, a class
            folder's name is not plain text, a class has no image, or the classes are the parts
            of a dataset ("train" and "val").
    """
    shown = printable(str(root))
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise MultigrainError(
            ErrorKind.DATASET,
            f"the dataset {shown} {what}: give a folder with one sub-folder of images per class",
        )
    try:
        found, left_out = lister(root, limits.roots).classes()
    except OSError as error:
        raise cannot_list(error) from error
    if not found:
        raise _no_classes(shown, left_out)
    check_layout(shown, found)
    empty = [(name, listing) for name, listing in found if not listing.paths]
    if empty:
        raise _no_images(shown, empty, everything=len(empty) == len(found))
    for _, listing in found:
        left_out.update(listing.left_out)
    return ImageFolder(
        root=root,
        classes=tuple(name for name, _ in found),
        paths=[path for _, listing in found for path in listing.paths],
        labels=np.repeat(
            np.arange(len(found), dtype=np.int32), [len(listing.paths) for _, listing in found]
        ),
        limits=limits,
        left_out=left_out,
        warning=layout_warning(shown, found),
    )


def scan_images(root: Path, limits: ImageLimits = DEFAULT_LIMITS) -> ImageFolder:
    """Lists the images anywhere below a folder, as one class without a name.

    Args:
        root: the folder.
        limits: limits of an image file, and the data roots.

    Raises:
        MultigrainError: DATASET, if the folder does not exist, cannot be listed or has no image.
    """
    shown = printable(str(root))
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise MultigrainError(ErrorKind.DATASET, f"{shown} {what}: give a folder of images")
    try:
        listing = lister(root, limits.roots).images()
    except OSError as error:
        raise cannot_list(error) from error
    if not listing.paths:
        raise MultigrainError(
            ErrorKind.DATASET,
            f"{shown} has no images{_only(listing.left_out)}: add image files ({_EXAMPLES})",
        )
    labels = np.zeros(len(listing.paths), np.int32)
    return ImageFolder(root, ("",), listing.paths, labels, limits, listing.left_out)


def cannot_list(error: OSError) -> MultigrainError:
    """A DATASET error for a folder that cannot be listed; PATH_NOT_ALLOWED for one that leads
    outside the data roots."""
    if isinstance(error, OutsideRootsError):
        return MultigrainError(
            ErrorKind.PATH_NOT_ALLOWED,
            f"the folder {printable(str(error.filename))} leads outside the server's data roots "
            "now; the operator can allow it with --data-root",
        )
    todo = os_error_hint(error, "list and read it", "check the disk")
    return MultigrainError(
        ErrorKind.DATASET,
        f"the folder {printable(str(error.filename))} cannot be listed: {error.strerror}; {todo}",
    )


_EXAMPLES = "JPEG, PNG, WebP, AVIF, BMP, GIF, TIFF"


def _no_classes(root: str, left_out: LeftOut) -> MultigrainError:
    direct = left_out.count(Reason.DIRECT)
    hint = f" ({direct} images are directly in it)" if direct else _only(left_out)
    return MultigrainError(
        ErrorKind.DATASET,
        f"the dataset {root} has no class folders{hint}: put the images into one sub-folder per "
        "class",
    )


def _no_images(root: str, empty: list[tuple[str, Listing]], *, everything: bool) -> MultigrainError:
    names = [name for name, _ in empty]
    which = "has no images" if everything else f"has no images in the classes {quoted(names)}"
    held = LeftOut()
    for _, listing in empty:
        held.update(listing.left_out)
    return MultigrainError(
        ErrorKind.DATASET,
        f"the dataset {root} {which}{_only(held)}: add image files ({_EXAMPLES}) or "
        "remove the empty folders",
    )


def _only(left_out: LeftOut) -> str:
    return f" (only {left_out.describe()})" if left_out else ""
