"""A dataset on disk: one sub-folder of image files per class. Does not decode images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError, shorten
from multigrain.storage import os_error_hint

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageFolder:
    """The images of a dataset, in an order that depends on their names alone.

    Args:
        root: the folder.
        classes: names of the classes; an image's label is an index into them.
        paths: image files relative to ``root``; an image's index here is its instance id.
        labels: int32 (images,).
    """

    root: Path
    classes: tuple[str, ...]
    paths: list[str]
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """Reads an image file.

        Raises:
            MultigrainError: IMAGE_UNREADABLE, if the file cannot be read.
        """
        try:
            return (self.root / self.paths[index]).read_bytes()
        except OSError as error:
            raise MultigrainError(
                ErrorKind.IMAGE_UNREADABLE,
                f"the file cannot be read ({error.strerror}): check its permissions and the disk",
            ) from error

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
        number = {name: i for i, name in enumerate(labels)}
        unknown = [name for name in self.classes if name not in number]
        if unknown:
            raise MultigrainError(
                ErrorKind.DATASET,
                f"{len(unknown)} class folders of {self.root} are not classes of the model: "
                f"{_names(unknown)}; the model has {_names(labels)}. Name the folders "
                "as in training",
            )
        order = np.array([number[name] for name in self.classes], np.int32)
        return replace(self, classes=labels, labels=order[self.labels])


def scan(root: Path) -> ImageFolder:
    """Lists a dataset: ``root/<class>/**/<image>``.

    Classes are the sub-folders, sorted by name; images are the files with an image's extension in
    any sub-folder of the class. Hidden files and folders are ignored. No file is opened.

    Args:
        root: the dataset.

    Returns:
        Its images, sorted by class and path.

    Raises:
        MultigrainError: DATASET, if the folder does not exist or has no class folders, a class
            folder's name is not UTF-8, or a class has no image.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise MultigrainError(
            ErrorKind.DATASET,
            f"the dataset {root} {what}: give a folder with one sub-folder of images per class",
        )
    try:
        with os.scandir(root) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        folders = [e for e in listed if e.is_dir() and not e.name.startswith(".")]
        found = [(e.name, _images(root, Path(e.path))) for e in folders]
    except OSError as error:
        raise _cannot_list(error) from error
    if not folders:
        direct = sum(_is_image(entry.name) for entry in listed)
        hint = f" ({direct} images are directly in it)" if direct else ""
        raise MultigrainError(
            ErrorKind.DATASET,
            f"the dataset {root} has no class folders{hint}: put the images into one "
            "sub-folder per class",
        )
    not_utf8 = [name for name, _ in found if not _is_utf8(name)]
    if not_utf8:
        # They would become class names, which checkpoints and messages hold as UTF-8.
        shown = _names([os.fsencode(name).decode(errors="backslashreplace") for name in not_utf8])
        raise MultigrainError(
            ErrorKind.DATASET,
            f"the dataset {root} has class folders whose names are not UTF-8: {shown}; rename them",
        )
    empty = [name for name, images in found if not images]
    if empty:
        everything = len(empty) == len(found)
        which = "has no images" if everything else f"has no images in the classes {_names(empty)}"
        raise MultigrainError(
            ErrorKind.DATASET,
            f"the dataset {root} {which}: add image files ({', '.join(EXTENSIONS)}) or remove "
            "the empty folders",
        )
    return ImageFolder(
        root=root,
        classes=tuple(name for name, _ in found),
        paths=[path for _, images in found for path in images],
        labels=np.repeat(
            np.arange(len(found), dtype=np.int32), [len(images) for _, images in found]
        ),
    )


def scan_images(root: Path) -> ImageFolder:
    """Lists the images anywhere below a folder, as one class without a name.

    Raises:
        MultigrainError: DATASET, if the folder does not exist, cannot be listed or has no image.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise MultigrainError(ErrorKind.DATASET, f"{root} {what}: give a folder of images")
    try:
        paths = _images(root, root)
    except OSError as error:
        raise _cannot_list(error) from error
    if not paths:
        raise MultigrainError(
            ErrorKind.DATASET, f"{root} has no images: add image files ({', '.join(EXTENSIONS)})"
        )
    return ImageFolder(root, ("",), paths, np.zeros(len(paths), np.int32))


def _cannot_list(error: OSError) -> MultigrainError:
    todo = os_error_hint(error, "list and read it", "check the disk")
    return MultigrainError(
        ErrorKind.DATASET, f"the folder {error.filename} cannot be listed: {error.strerror}; {todo}"
    )


def _images(root: Path, folder: Path) -> list[str]:
    images = []
    prefix = folder.relative_to(root).as_posix()

    # By default os.walk silently skips folders that it cannot list.
    def failed(error: OSError) -> None:
        raise error

    for directory, subfolders, names in os.walk(folder, onerror=failed):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        below = Path(directory).relative_to(folder).as_posix()
        start = "/".join(part for part in (prefix, below) if part != ".")
        images += [f"{start}/{name}" if start else name for name in names if _is_image(name)]
    return sorted(images)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _names(names: Sequence[str]) -> str:
    return shorten([repr(name) for name in names])
