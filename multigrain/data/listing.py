"""Lists the image files of a folder. Training, evaluation, export and the client all use this.

What is listed, in one place (docs/how-to/prepare-data.md says it for users):

- Files with the extension of a format that is read, in any case (``.JPG``), and files without any
  extension or with an unknown one (``1.jpg?v=3``) whose first bytes are those of such a format.
- Hidden files and folders, and those that systems put beside images (``@eaDir``, ``lost+found``,
  ``Thumbs.db``, ...), are passed over. They are never opened: they may be unreadable.
- Links to files and to folders are followed, but in a job of the daemon not out of the data roots.
  A link to a folder that contains the link is not followed, nor one to a folder that is listed
  already: folders that link to each other twice would make 2**n.
- Whatever else is there is left out and counted by reason.

Imports no package beside the standard library: the client imports it.
"""

from __future__ import annotations

import heapq
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from operator import itemgetter

from multigrain.data.file_names import OTHER_EXTENSIONS, is_system
from multigrain.files import (
    OutsideRootsError,
    Roots,
    open_descriptor,
    open_folder,
    stat_path,
)
from multigrain.images.formats import (
    NAMED_EXTENSIONS,
    OPTIONAL_EXTENSIONS,
    READ_EXTENSIONS,
    identify,
)
from multigrain.text import printable

_SNIFFED = 1024  # bytes by which a format is recognized
_TRIED = 1000  # most files of an unknown extension that are opened without finding an image
# What programs append to the name of the file that they have changed.
_BACKUP = ("~", "_original", ".bak", ".orig", ".old")
_BACKUP_END = re.compile(r"(~|_original|\.bak|\.orig|\.old)$")
_SHOWN = 3  # most examples of one reason
_KINDS = 5  # most extensions or names of one reason


class Reason(StrEnum):
    """Why a file or folder is left out."""

    UNSUPPORTED = "unsupported"  # an image in a format that is not read here
    DIRECT = "direct"  # an image beside the class folders
    BROKEN_LINK = "broken_link"
    OUTSIDE = "outside"  # it leads outside the data roots
    LOOP = "loop"  # a link to a folder that contains it
    SPECIAL = "special"  # a pipe, a socket or a device
    UNREADABLE = "unreadable"  # it may be an image, but cannot be opened
    LISTED_ALREADY = "listed_already"  # a folder that links reach in two ways
    NO_EXTENSION = "no_extension"
    OTHER = "other"  # another extension
    SYSTEM = "system"
    HIDDEN = "hidden"


# Reasons for which an image may be missing that the user means to be there.
_SUSPECT = frozenset(
    {
        Reason.UNSUPPORTED,
        Reason.DIRECT,
        Reason.BROKEN_LINK,
        Reason.OUTSIDE,
        Reason.LOOP,
        Reason.SPECIAL,
        Reason.UNREADABLE,
    }
)


@dataclass
class LeftOut:
    """What a listing leaves out, counted by reason and by kind.

    Attributes:
        counts: reason -> extension or name -> number; of reasons that occur.
        examples: reason -> some paths.
    """

    counts: dict[Reason, Counter[str]] = field(default_factory=dict)
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
        self.counts.setdefault(reason, Counter())[kind] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < _SHOWN:
            shown.append(path)

    def update(self, other: LeftOut) -> None:
        """Adds the counts of another listing."""
        for reason, kinds in other.counts.items():
            self.counts.setdefault(reason, Counter()).update(kinds)
        for reason, paths in other.examples.items():
            shown = self.examples.setdefault(reason, [])
            shown += paths[: _SHOWN - len(shown)]

    def count(self, reason: Reason) -> int:
        """The number of files and folders with a reason."""
        return self.counts.get(reason, Counter()).total()

    @property
    def suspect(self) -> bool:
        """Whether an image may be missing that the user means to be there."""
        return not _SUSPECT.isdisjoint(self.counts)

    @property
    def by_reason(self) -> dict[str, int]:
        """Number by reason, for programs."""
        return {r.value: self.counts[r].total() for r in Reason if r in self.counts}

    def describe(self) -> str:
        """One line: "12 .heic files (...), 1 broken link (3/x.png)"; "" if nothing is left out."""
        return "; ".join(self._describe(reason) for reason in Reason if reason in self.counts)

    def _describe(self, reason: Reason) -> str:
        kinds = self.counts[reason]
        number = kinds.total()
        files, links = _count(number, "file"), _count(number, "link")
        examples = ", ".join(printable(path) for path in sorted(self.examples[reason]))
        if reason is Reason.UNSUPPORTED:
            return ", ".join(
                f"{_count(kinds[kind], f'{kind} file')} ({unsupported(kind)})"
                for kind in sorted(kinds)
            )
        if reason is Reason.DIRECT:
            return f"{_count(number, 'image')} beside the class folders ({examples})"
        if reason is Reason.BROKEN_LINK:
            return f"{links} that cannot be followed ({examples})"
        if reason is Reason.OUTSIDE:
            lead = "leads" if number == 1 else "lead"
            return f"{links} that {lead} outside the data roots ({examples})"
        if reason is Reason.LOOP:
            return f"{links} to a folder that contains the link ({examples})"
        if reason is Reason.LISTED_ALREADY:
            return f"{links} to a folder that is listed already ({examples})"
        if reason is Reason.UNREADABLE:
            return f"{files} that cannot be read ({examples}: {', '.join(sorted(kinds))})"
        if reason is Reason.SPECIAL:
            what = _count(number, "special file")
            return f"{what} (pipes, sockets or devices: {examples})"
        if reason is Reason.NO_EXTENSION:
            what = "is no image" if number == 1 else "are no images"
            return f"{files} without extension that {what} ({examples})"
        if reason is Reason.OTHER:
            return f"{files} of other kinds ({_frequent(kinds)})"
        if reason is Reason.SYSTEM:
            return f"{_count(number, 'system file or folder')} ({_frequent(kinds)})"
        return _count(number, "hidden file or folder")


def _frequent(kinds: Counter[str]) -> str:
    """The most frequent kinds: "2 .txt, 1 .json"."""
    found = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
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


# Called before each folder is listed and each file is opened; what it raises ends the listing.
_proceed: ContextVar[Callable[[], None]] = ContextVar("_proceed", default=lambda: None)


@contextmanager
def watched(proceed: Callable[[], None]) -> Iterator[None]:
    """Watches the listings of a ``with`` block.

    Args:
        proceed: called before each folder is listed and before each file is opened that must be
            looked into. What it raises ends the listing.
    """
    token = _proceed.set(proceed)
    try:
        yield
    finally:
        _proceed.reset(token)


@dataclass(frozen=True)
class _Folder:
    """A folder that is being listed, and the one above it. ``real`` is without links."""

    path: str
    real: str
    prefix: str
    above: _Folder | None

    def below(self, name: str) -> _Folder:
        """An ordinary folder in this one; needs no look at the disk."""
        real = os.path.join(self.real, name)
        return _Folder(os.path.join(self.path, name), real, f"{self.prefix}{name}/", self)

    def linked(self, name: str) -> _Folder:
        """A folder that a link in this one leads to."""
        path = os.path.join(self.path, name)
        return _Folder(path, os.path.realpath(path), f"{self.prefix}{name}/", self)

    def is_in(self, target: str) -> bool:
        """Whether a real path is this folder or one above it, links included."""
        inside = os.path.join(target, "")
        folder: _Folder | None = self
        while folder is not None:
            if folder.real == target or folder.real.startswith(inside):
                return True
            folder = folder.above
        return False


class _What(Enum):
    """What is in a folder."""

    IMAGE = auto()
    UNKNOWN = auto()  # a file that is an image if its first bytes say so
    FOLDER = auto()
    LINK = auto()  # to a folder


class Lister:
    """Lists folders by the rule of this module.

    Args:
        root: the folder that paths are relative to.
        optional: whether formats that need an additional package are read.
        roots: folders that everything must be in, wherever links lead; None = no restriction.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, optional: bool, roots: Roots = None
    ) -> None:
        path = os.fspath(root)
        self._roots = roots
        self._root = _Folder(path, os.path.realpath(path), "", None)
        self._optional = optional
        self._extensions = frozenset(READ_EXTENSIONS + (OPTIONAL_EXTENSIONS if optional else ()))
        # Files opened by unknown extension; -1 as soon as one of them is an image.
        self._tried: dict[str, int] = {}

    def classes(self) -> tuple[list[tuple[str, Listing]], LeftOut]:
        """Lists the sub-folders of the root, sorted by name.

        Returns:
            Name and images of each, and what is left out beside them.

        Raises:
            OSError: if a folder cannot be listed.
        """
        beside = LeftOut()
        root = self._root
        folders: list[tuple[str, _Folder]] = []
        images: list[str] = []
        unknown: list[str] = []
        for name, what in self._entries(root, beside):
            if what is _What.IMAGE:
                images.append(name)
            elif what is _What.UNKNOWN:
                unknown.append(name)
            else:
                link = what is _What.LINK
                folders.append((name, root.linked(name) if link else root.below(name)))
        for name in sorted(images + self._images_among(unknown, images, beside)):
            beside.add(Reason.DIRECT, "", name)
        return [
            (name, self._images(folder)) for name, folder in sorted(folders, key=itemgetter(0))
        ], beside

    def images(self, below: str = "") -> Listing:
        """Lists the images in the root, or in a folder below it, and in all sub-folders.

        Args:
            below: the folder, relative to the root.

        Raises:
            OSError: if a folder cannot be listed.
        """
        top = self._root
        for part in filter(None, below.split("/")):
            top = top.linked(part)
        return self._images(top)

    def _images(self, top: _Folder) -> Listing:
        """Lists each real folder once: first the ordinary ones, then those that only links lead
        to, in the order of the links' names, so that the result does not depend on the disk."""
        left_out = LeftOut()
        paths: list[str] = []
        unknown: list[str] = []
        folders: list[str] = []
        listed: set[str] = set()
        links: list[tuple[str, _Folder]] = []
        followed = False
        pending = [top]
        while pending:
            folder = pending.pop()
            listed.add(folder.real)
            prefix = folder.prefix
            for name, what in self._entries(folder, left_out):
                if what is _What.IMAGE:
                    paths.append(prefix + name)
                elif what is _What.UNKNOWN:
                    unknown.append(prefix + name)
                elif what is _What.LINK:
                    heapq.heappush(links, (prefix + name, folder.linked(name)))
                elif followed and folder.below(name).real in listed:
                    left_out.add(Reason.LISTED_ALREADY, "", prefix + name)
                else:
                    pending.append(folder.below(name))
                    if folder is top:
                        folders.append(name)
            while links and not pending:
                path, link = heapq.heappop(links)
                followed = True
                if link.real in listed:
                    left_out.add(Reason.LISTED_ALREADY, "", path)
                else:
                    pending.append(link)
                    if link.above is top:
                        folders.append(os.path.basename(path))
        paths += self._images_among(unknown, paths, left_out)
        paths.sort()
        start = len(top.prefix)
        direct = any(path.find("/", start) < 0 for path in paths)
        return Listing(paths, left_out, tuple(sorted(folders)), direct)

    def _entries(self, folder: _Folder, left_out: LeftOut) -> Iterator[tuple[str, _What]]:
        """Yields the files that may be images, and the sub-folders of a folder."""
        extensions, prefix = self._extensions, folder.prefix
        _proceed.get()()
        with self._scandir(folder, left_out) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    left_out.add(Reason.HIDDEN, "", prefix + name)
                    continue
                # Neither asks the file system, where it stores the type with the name.
                if entry.is_file(follow_symlinks=False):
                    if name[name.rfind(".") :].lower() in extensions:
                        yield name, _What.IMAGE
                    elif self._may_be_image(name, prefix, left_out):
                        yield name, _What.UNKNOWN
                    continue
                if is_system(name):
                    left_out.add(Reason.SYSTEM, name, prefix + name)
                elif entry.is_dir(follow_symlinks=False):
                    yield name, _What.FOLDER
                elif not entry.is_symlink():
                    left_out.add(Reason.SPECIAL, "", prefix + name)
                else:
                    yield from self._follow(entry, folder, left_out)

    @contextmanager
    def _scandir(self, folder: _Folder, left_out: LeftOut) -> Iterator[Iterable[os.DirEntry[str]]]:
        if self._roots is None:
            with os.scandir(folder.path) as entries:
                yield entries
            return
        try:
            descriptor = open_folder(folder.path, self._roots)
        except OutsideRootsError:
            if folder.above is None:
                raise
            # It was a folder a moment ago, and has been replaced by a link.
            left_out.add(Reason.OUTSIDE, "", folder.prefix.rstrip("/"))
            yield ()
            return
        try:
            with os.scandir(descriptor) as entries:
                yield entries
        finally:
            os.close(descriptor)

    def _follow(
        self, entry: os.DirEntry[str], folder: _Folder, left_out: LeftOut
    ) -> Iterator[tuple[str, _What]]:
        name, prefix = entry.name, folder.prefix
        path = os.path.join(folder.path, name)
        try:
            # An absolute target is looked at directly: through the link it would take two steps.
            target = os.readlink(path) if self._roots is not None else ""
            mode = stat_path(target if target.startswith("/") else path, self._roots).st_mode
        except OutsideRootsError:
            left_out.add(Reason.OUTSIDE, "", prefix + name)
            return
        except OSError:  # it leads nowhere, no permission, or too many links
            left_out.add(Reason.BROKEN_LINK, "", prefix + name)
            return
        if stat.S_ISDIR(mode):
            if folder.is_in(os.path.realpath(path)):
                left_out.add(Reason.LOOP, "", prefix + name)
            else:
                yield name, _What.LINK
        elif not stat.S_ISREG(mode):
            left_out.add(Reason.SPECIAL, "", prefix + name)
        elif name[name.rfind(".") :].lower() in self._extensions:
            yield name, _What.IMAGE
        elif self._may_be_image(name, prefix, left_out):
            yield name, _What.UNKNOWN

    def _may_be_image(self, name: str, prefix: str, left_out: LeftOut) -> bool:
        """Whether a file without a known extension must be opened; it is counted if not."""
        extension = os.path.splitext(name.lower())[1]
        if is_system(name):
            left_out.add(Reason.SYSTEM, name, prefix + name)
        elif extension in OPTIONAL_EXTENSIONS or extension in NAMED_EXTENSIONS:
            left_out.add(Reason.UNSUPPORTED, extension, prefix + name)
        elif extension in OTHER_EXTENSIONS:
            left_out.add(Reason.OTHER, extension, prefix + name)
        else:
            return True
        return False

    def _images_among(self, unknown: list[str], images: list[str], left_out: LeftOut) -> list[str]:
        """The images among files without a known extension; the others are counted.

        They are opened in the order of their names, so that the limit of files that are tried has
        the same result on every host.

        Args:
            unknown: the files, relative to the root.
            images: the images of the same listing.
            left_out: receives the others.
        """
        backups = [path for path in unknown if path.endswith(_BACKUP)]
        originals = set(images) if backups else set()
        found = []
        for path in sorted(unknown):
            extension = os.path.splitext(path.lower())[1]
            if path.endswith(_BACKUP) and _BACKUP_END.sub("", path) in originals:
                left_out.add(Reason.OTHER, extension, path)
            elif self._starts_as_image(path, extension, left_out):
                found.append(path)
        return found

    def _starts_as_image(self, path: str, extension: str, left_out: LeftOut) -> bool:
        """Whether the first bytes are those of a format that is read; it is counted if not."""
        group = re.sub(r"\d+", "0", extension)
        tried = self._tried.get(group, 0)
        kind = None
        if tried < _TRIED or not extension:
            _proceed.get()()
            try:
                file = open_descriptor(os.path.join(self._root.path, path), self._roots)
                try:
                    start = os.read(file, _SNIFFED)
                finally:
                    os.close(file)
            except OutsideRootsError:
                left_out.add(Reason.OUTSIDE, "", path)
                return False
            except OSError as error:
                left_out.add(Reason.UNREADABLE, error.strerror or str(error), path)
                return False
            kind = identify(start) if start else None
        if kind is not None and kind.read:
            self._tried[group] = -1
            if self._optional or kind.name != "HEIC":
                return True
            left_out.add(Reason.UNSUPPORTED, OPTIONAL_EXTENSIONS[0], path)
            return False
        if tried >= 0:
            self._tried[group] = tried + 1
        left_out.add(Reason.OTHER if extension else Reason.NO_EXTENSION, extension, path)
        return False


def list_images(root: str | os.PathLike[str], *, optional: bool) -> Listing:
    """Lists the image files below a folder as :class:`Lister` does."""
    return Lister(root, optional=optional).images()
