"""Lists the image files of a folder. Training, evaluation, export and the client all use this.

What is listed, in one place (docs/how-to/prepare-data.md says it for users):

- Files with the extension of a format that is read, in any case (``.JPG``), and files without any
  extension whose first bytes are those of such a format.
- Hidden files and folders, and those that systems put beside images (``@eaDir``, ``lost+found``,
  ``Thumbs.db``, ...), are passed over. They are never opened: they may be unreadable.
- Links to files and to folders are followed. A link to a folder that contains the link is not.
- Whatever else is there is left out and counted by reason.

Imports no package beside the standard library: the client imports it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from multigrain.images.formats import (
    NAMED_EXTENSIONS,
    OPTIONAL_EXTENSIONS,
    READ_EXTENSIONS,
    identify,
)
from multigrain.text import printable

# In lower case. Names that begin with a dot are hidden anyway.
SYSTEM_NAMES = frozenset(
    {
        # Network storage: thumbnails, recycle bins and snapshots (Synology, QNAP, NetApp).
        "@eadir",
        "@tmp",
        "@sharesnap",
        "@recycle",
        "@recently-snapshot",
        "@transcode",
        "#recycle",
        "#snapshot",
        "~snapshot",
        # Linux: the root of every ext file system.
        "lost+found",
        "aquota.user",
        "aquota.group",
        # macOS: left by archives and by the Finder.
        "__macosx",
        "icon\r",
        "network trash folder",
        "temporary items",
        # Windows.
        "$recycle.bin",
        "recycler",
        "lost.dir",
        "system volume information",
        "found.000",
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        # Python.
        "__pycache__",
    }
)

_SNIFFED = 1024  # bytes by which a format is recognized
_SHOWN = 3  # most examples of one reason
_KINDS = 5  # most extensions or names of one reason


class Reason(StrEnum):
    """Why a file or folder is left out."""

    UNSUPPORTED = "unsupported"  # an image in a format that is not read here
    DIRECT = "direct"  # an image beside the class folders
    BROKEN_LINK = "broken_link"
    LOOP = "loop"  # a link to a folder that contains it
    SPECIAL = "special"  # a pipe, a socket or a device
    NO_EXTENSION = "no_extension"
    OTHER = "other"  # another extension
    SYSTEM = "system"
    HIDDEN = "hidden"


# Reasons for which an image may be missing that the user means to be there.
_SUSPECT = frozenset(
    {Reason.UNSUPPORTED, Reason.DIRECT, Reason.BROKEN_LINK, Reason.LOOP, Reason.SPECIAL}
)


@dataclass
class LeftOut:
    """What a listing leaves out, counted by reason and by kind.

    Attributes:
        counts: (reason, extension or name) -> number.
        examples: reason -> some paths.
    """

    counts: Counter[tuple[Reason, str]] = field(default_factory=Counter)
    examples: dict[Reason, list[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def add(self, reason: Reason, kind: str, path: str) -> None:
        """Counts a file or folder.

        Args:
            reason: why it is left out.
            kind: its extension, or its name.
            path: relative to the listed folder.
        """
        self.counts[reason, kind] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < _SHOWN:
            shown.append(path)

    def update(self, other: LeftOut) -> None:
        """Adds the counts of another listing."""
        self.counts.update(other.counts)
        for reason, paths in other.examples.items():
            shown = self.examples.setdefault(reason, [])
            shown += paths[: _SHOWN - len(shown)]

    def count(self, reason: Reason) -> int:
        """The number of files and folders with a reason."""
        return sum(number for (of, _), number in self.counts.items() if of is reason)

    @property
    def suspect(self) -> bool:
        """Whether an image may be missing that the user means to be there."""
        return any(reason in _SUSPECT for reason, _ in self.counts)

    @property
    def by_reason(self) -> dict[str, int]:
        """Number by reason, for programs."""
        return {reason.value: self.count(reason) for reason in Reason if self.count(reason)}

    def describe(self) -> str:
        """One line: "12 .heic files (...), 1 broken link (3/x.png)"; "" if nothing is left out."""
        return "; ".join(self._describe(reason) for reason in Reason if self.count(reason))

    def _describe(self, reason: Reason) -> str:
        number = self.count(reason)
        files, links = _count(number, "file"), _count(number, "link")
        examples = ", ".join(printable(path) for path in sorted(self.examples[reason]))
        if reason is Reason.UNSUPPORTED:
            kinds = sorted(kind for of, kind in self.counts if of is reason)
            return ", ".join(
                f"{_count(self.counts[reason, kind], f'{kind} file')} ({unsupported(kind)})"
                for kind in kinds
            )
        if reason is Reason.DIRECT:
            return f"{_count(number, 'image')} beside the class folders ({examples})"
        if reason is Reason.BROKEN_LINK:
            return f"{links} that cannot be followed ({examples})"
        if reason is Reason.LOOP:
            return f"{links} to a folder that contains the link ({examples})"
        if reason is Reason.SPECIAL:
            what = _count(number, "special file")
            return f"{what} (pipes, sockets or devices: {examples})"
        if reason is Reason.NO_EXTENSION:
            what = "is no image" if number == 1 else "are no images"
            return f"{files} without extension that {what} ({examples})"
        if reason is Reason.OTHER:
            return f"{files} of other kinds ({self._kinds(reason)})"
        if reason is Reason.SYSTEM:
            return f"{_count(number, 'system file or folder')} ({self._kinds(reason)})"
        return _count(number, "hidden file or folder")

    def _kinds(self, reason: Reason) -> str:
        found = sorted(
            ((kind, number) for (of, kind), number in self.counts.items() if of is reason),
            key=lambda item: (-item[1], item[0]),
        )
        shown = [f"{number} {printable(kind)}" for kind, number in found[:_KINDS]]
        return ", ".join([*shown, "..."] if len(found) > _KINDS else shown)


def _count(number: int, what: str) -> str:
    """ "1 file", "2 files", "2 system files or folders"."""
    if number == 1:
        return f"1 {what}"
    return f"{number} " + " or ".join(f"{word}s" for word in what.split(" or "))


def unsupported(extension: str) -> str:
    """What to do about images with an extension that is not read here."""
    if extension in OPTIONAL_EXTENSIONS:
        return "to read them: pip install 'multigrain[heif]'"
    return f"{NAMED_EXTENSIONS[extension]} is not read: save as JPEG or PNG"


@dataclass(frozen=True)
class Listing:
    """The image files below a folder.

    Attributes:
        paths: relative to the listing's root, with "/", sorted.
        left_out: what else is there.
        folders: the sub-folders, in which some of the images are; sorted.
        direct: whether some of the images are in the folder itself.
    """

    paths: list[str]
    left_out: LeftOut
    folders: tuple[str, ...] = ()
    direct: bool = True


@dataclass(frozen=True)
class _Folder:
    """A folder that is being listed, and the one above it."""

    path: str
    prefix: str
    above: _Folder | None

    @cached_property
    def real(self) -> str:
        return os.path.realpath(self.path)

    def is_in(self, link: str) -> bool:
        """Whether this folder, or one above it, is what a link leads to, or is below that."""
        target = os.path.realpath(link)
        inside = os.path.join(target, "")
        folder: _Folder | None = self
        while folder is not None:
            if folder.real == target or folder.real.startswith(inside):
                return True
            folder = folder.above
        return False


class Lister:
    """Lists folders by the rule of this module.

    Args:
        root: the folder that paths are relative to.
        optional: whether formats that need an additional package are read.
    """

    def __init__(self, root: str | os.PathLike[str], *, optional: bool) -> None:
        self._root = _Folder(os.fspath(root), "", None)
        self._extensions = frozenset(READ_EXTENSIONS + (OPTIONAL_EXTENSIONS if optional else ()))

    def classes(self) -> tuple[list[tuple[str, Listing]], LeftOut]:
        """Lists the sub-folders of the root, sorted by name.

        Returns:
            Name and images of each, and what is left out beside them.

        Raises:
            OSError: if a folder cannot be listed.
        """
        beside = LeftOut()
        folders: list[str] = []
        for name, is_folder in self._entries(self._root, beside):
            if is_folder:
                folders.append(name)
            else:
                beside.add(Reason.DIRECT, "", name)
        folders.sort()
        return [(name, self.images(name)) for name in folders], beside

    def images(self, below: str = "") -> Listing:
        """Lists the images in the root, or in a folder below it, and in all sub-folders.

        Args:
            below: the folder, relative to the root.

        Raises:
            OSError: if a folder cannot be listed.
        """
        left_out = LeftOut()
        paths: list[str] = []
        folders: list[str] = []
        top = self._root
        for part in filter(None, below.split("/")):
            top = _below(top, part)
        direct = False
        pending = [top]
        while pending:
            folder = pending.pop()
            prefix = folder.prefix
            for name, is_folder in self._entries(folder, left_out):
                if is_folder:
                    pending.append(_below(folder, name))
                    if folder is top:
                        folders.append(name)
                else:
                    paths.append(prefix + name)
                    direct = direct or folder is top
        paths.sort()
        return Listing(paths, left_out, tuple(sorted(folders)), direct)

    def _entries(self, folder: _Folder, left_out: LeftOut) -> Iterator[tuple[str, bool]]:
        """Yields the images and sub-folders of a folder, and whether it is a folder."""
        extensions, prefix = self._extensions, folder.prefix
        with os.scandir(folder.path) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    left_out.add(Reason.HIDDEN, "", prefix + name)
                    continue
                # Neither asks the file system, where it stores the type with the name.
                if entry.is_file(follow_symlinks=False):
                    known = name[name.rfind(".") :].lower() in extensions
                    if known or self._is_image(entry, prefix, left_out):
                        yield name, False
                    continue
                if name.lower() in SYSTEM_NAMES:
                    left_out.add(Reason.SYSTEM, name, prefix + name)
                elif entry.is_dir(follow_symlinks=False):
                    yield name, True
                elif not entry.is_symlink():
                    left_out.add(Reason.SPECIAL, "", prefix + name)
                else:
                    yield from self._follow(entry, folder, left_out)

    def _follow(
        self, entry: os.DirEntry[str], folder: _Folder, left_out: LeftOut
    ) -> Iterator[tuple[str, bool]]:
        name, prefix = entry.name, folder.prefix
        try:
            is_folder = entry.is_dir()
            if is_folder and folder.is_in(entry.path):
                left_out.add(Reason.LOOP, "", prefix + name)
                return
            is_file = entry.is_file()
            exists = is_folder or is_file or os.path.exists(entry.path)
        except OSError:  # no permission, or too many links
            exists = False
        if not exists:
            left_out.add(Reason.BROKEN_LINK, "", prefix + name)
        elif is_folder:
            yield name, True
        elif not is_file:
            left_out.add(Reason.SPECIAL, "", prefix + name)
        elif name[name.rfind(".") :].lower() in self._extensions or self._is_image(
            entry, prefix, left_out
        ):
            yield name, False

    def _is_image(self, entry: os.DirEntry[str], prefix: str, left_out: LeftOut) -> bool:
        """Whether a file without a known extension is an image; it is counted if not."""
        name = entry.name
        lower = name.lower()
        extension = os.path.splitext(lower)[1]
        if lower in SYSTEM_NAMES:
            left_out.add(Reason.SYSTEM, name, prefix + name)
        elif extension in OPTIONAL_EXTENSIONS or extension in NAMED_EXTENSIONS:
            left_out.add(Reason.UNSUPPORTED, extension, prefix + name)
        elif extension:
            left_out.add(Reason.OTHER, extension, prefix + name)
        elif _starts_as_image(entry.path):
            return True
        else:
            left_out.add(Reason.NO_EXTENSION, "", prefix + name)
        return False


def _below(folder: _Folder, name: str) -> _Folder:
    return _Folder(os.path.join(folder.path, name), f"{folder.prefix}{name}/", folder)


def _starts_as_image(path: str) -> bool:
    """Whether the first bytes are those of a format that is read. Opens the file."""
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(_SNIFFED)
    except OSError:
        return False
    kind = identify(start) if start else None
    return kind is not None and kind.read


def list_images(root: str | os.PathLike[str], *, optional: bool) -> Listing:
    """Lists the images anywhere below a folder; see :class:`Lister`."""
    return Lister(Path(root), optional=optional).images()
