"""A dataset on disk: one sub-folder of image files per class. Does not decode images."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multigrain.data.listing import LeftOut, Lister, Listing, Reason
from multigrain.errors import ErrorKind, MultigrainError, shorten
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits
from multigrain.storage import os_error_hint
from multigrain.text import is_text, normalize, printable

# Names of the parts of a dataset, not of its classes; COCO's have a year.
_PART = re.compile(
    r"(train|training|trainval|val|valid|validation|test|testing|dev|eval)([_-]?20\d\d)?",
    re.IGNORECASE,
)
# Class names are written into checkpoints, tables and plots, and are shown in terminals.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


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

    def read(self, index: int) -> bytes:
        """Reads an image file.

        Raises:
            MultigrainError: IMAGE_UNREADABLE, if the file cannot be read; IMAGE_TOO_LARGE.
        """
        try:
            with open(self.root / self.paths[index], "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size <= self.limits.max_bytes:
                    return file.read()
        except OSError as error:
            raise MultigrainError(
                ErrorKind.IMAGE_UNREADABLE,
                f"the file cannot be read ({error.strerror}): check its permissions and the disk",
            ) from error
        raise MultigrainError(
            ErrorKind.IMAGE_TOO_LARGE,
            f"the file has {size} bytes, more than the limit of {self.limits.max_bytes}: save it "
            "smaller or more compressed, or raise serving.max_image_bytes of the daemon",
        )

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
                f"the model: {_names(unknown)}; the model has {_names(labels)}. Name the folders "
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


def lister(root: Path) -> Lister:
    """Lists folders with the formats that this installation reads."""
    return Lister(root, optional=find_spec("pillow_heif") is not None)


def scan(root: Path, limits: ImageLimits = DEFAULT_LIMITS) -> ImageFolder:
    """Lists a dataset: ``root/<class>/**/<image>``.

    Classes are the sub-folders, sorted by name; ``multigrain.data.listing`` says what is listed.

    Args:
        root: the dataset.
        limits: limits of an image file.

    Returns:
        Its images, sorted by class and path.

    Raises:
        MultigrainError: DATASET, if the folder does not exist or has no class folders, a class
            folder's name is not text, a class has no image, or the classes are the parts of a
            dataset ("train" and "val").
    """
    shown = printable(str(root))
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise MultigrainError(
            ErrorKind.DATASET,
            f"the dataset {shown} {what}: give a folder with one sub-folder of images per class",
        )
    try:
        found, left_out = lister(root).classes()
    except OSError as error:
        raise cannot_list(error) from error
    if not found:
        raise _no_classes(shown, left_out)
    _check_names(shown, [name for name, _ in found])
    _check_parts(shown, found)
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
        warning=_layout_warning(shown, found),
    )


def scan_images(root: Path, limits: ImageLimits = DEFAULT_LIMITS) -> ImageFolder:
    """Lists the images anywhere below a folder, as one class without a name.

    Args:
        root: the folder.
        limits: limits of an image file.

    Raises:
        MultigrainError: DATASET, if the folder does not exist, cannot be listed or has no image.
    """
    shown = printable(str(root))
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise MultigrainError(ErrorKind.DATASET, f"{shown} {what}: give a folder of images")
    try:
        listing = lister(root).images()
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
    """A DATASET error for a folder that cannot be listed."""
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


def _check_names(root: str, names: list[str]) -> None:
    """Refuses class names that are not text, and those that only look different to a program."""
    wrong = [name for name in names if not is_text(name)]
    if wrong:
        # They would become class names, which checkpoints and messages hold as UTF-8.
        raise MultigrainError(
            ErrorKind.DATASET,
            f"the dataset {root} has class folders whose names are not UTF-8: {_names(wrong)}; "
            "rename them",
        )
    wrong = [name for name in names if _CONTROL.search(name)]
    if wrong:
        raise MultigrainError(
            ErrorKind.DATASET,
            f"the dataset {root} has class folders with control characters in their names: "
            f"{_names(wrong)}; rename them",
        )
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(normalize(name), name)
        if other is not name:
            raise MultigrainError(
                ErrorKind.DATASET,
                f"the dataset {root} has two class folders of the same name {printable(name)!r} in "
                f"two Unicode forms, {other!a} and {name!a}: merge or rename them",
            )


def _holds_folders_only(listing: Listing) -> bool:
    return bool(listing.paths) and not listing.direct


def _check_parts(root: str, found: list[tuple[str, Listing]]) -> None:
    """Refuses a dataset whose classes are its parts for training and validation."""
    # In ImageNet the validation and test images are not in folders of classes.
    nested = [name for name, listing in found if _holds_folders_only(listing)]
    if not nested or not _are_parts(found):
        return
    best = next((name for name in nested if name.lower().startswith("train")), nested[0])
    names = [name for name, listing in found if listing.paths]
    raise MultigrainError(
        ErrorKind.DATASET,
        f"the dataset {root} has no class folders but the parts {_names(names)} of a dataset: did "
        f"you mean {root.rstrip('/')}/{best}?",
    )


def _are_parts(found: list[tuple[str, Listing]]) -> bool:
    names = [name for name, listing in found if listing.paths]
    return bool(names) and all(_PART.fullmatch(name) for name in names)


def _layout_warning(root: str, found: list[tuple[str, Listing]]) -> str:
    if _are_parts(found):
        names = _names([name for name, _ in found])
        return f"the class folders {names} are named like the parts of a dataset, not like classes"
    if not all(_holds_folders_only(listing) for _, listing in found):
        return ""
    name, listing = found[0]
    inside = _names(listing.folders, 3)
    if len(found) == 1:
        parts = [part for part in listing.folders if _PART.fullmatch(part)]
        if parts and len(parts) == len(listing.folders):
            best = next((part for part in parts if part.lower().startswith("train")), parts[0])
            return (
                f"the only class folder {_names([name])} holds the parts of a dataset ({inside}): "
                f"did you mean {root.rstrip('/')}/{printable(name)}/{best}?"
            )
        return (
            f"the only class folder {_names([name])} holds folders only ({inside}): if these are "
            f"the classes, give {root.rstrip('/')}/{printable(name)}"
        )
    return (
        f"all {len(found)} class folders hold folders only ({_names([name])}: {inside}): if those "
        "are the classes, give the folder right above them"
    )


def _no_images(root: str, empty: list[tuple[str, Listing]], *, everything: bool) -> MultigrainError:
    names = [name for name, _ in empty]
    which = "has no images" if everything else f"has no images in the classes {_names(names)}"
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


def _names(names: Sequence[str], limit: int = 5) -> str:
    return shorten([f"'{printable(name)}'" for name in names], limit)
