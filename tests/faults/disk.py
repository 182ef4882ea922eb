"""What a power cut would leave of a program's changes, derived from its system calls."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePath

CALLS = (
    "openat,mkdir,write,pwrite64,ftruncate,rename,renameat2,link,linkat,fsync,fdatasync,"
    "newfstatat,stat"
)

_LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")
_DESCRIPTOR = re.compile(r"^\d+<([^>]*)>")
_NAMES = re.compile(r'"([^"]*)"')
_MARK = '"/mark/'


@dataclass
class Disk:
    """Follows the lines of ``strace -f -y`` (one thread at a time must write below ``root``).

    Attributes:
        root: what lies outside is not looked at.
        faults: each promise that was broken: the mark before it, and what it was.
    """

    root: Path
    faults: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    _mark: str = ""
    _dirty: set[PurePath] = field(default_factory=set)
    _unsynced: set[PurePath] = field(default_factory=set)
    _known: set[PurePath] = field(default_factory=set)
    _moved: set[PurePath] = field(default_factory=set)

    def take(self, line: str) -> None:
        """Takes in one line of the trace."""
        found = _LINE.match(line)
        if found is None:
            return
        call, arguments, result = found[1], found[2], int(found[3])
        if call in ("stat", "newfstatat"):
            if _MARK in arguments:
                self._settle()
                self._mark = arguments.partition(_MARK)[2].partition('"')[0]
                self.seen.append(self._mark)
        elif result >= 0:
            self._change(call, arguments)

    def _change(self, call: str, arguments: str) -> None:
        if call in ("openat", "mkdir"):
            if call == "mkdir" or "O_CREAT" in arguments:
                path = PurePath(_NAMES.findall(arguments)[0])
                if path.is_relative_to(self.root) and path not in self._known:
                    self._known.add(path)
                    self._unsynced.add(path)
        elif call in ("rename", "renameat2"):
            self._rename(*(PurePath(name) for name in _NAMES.findall(arguments)))
            if "EXCHANGE" in arguments:
                self._unsynced.add(PurePath(_NAMES.findall(arguments)[0]))
        elif call in ("link", "linkat"):
            old, new = (PurePath(name) for name in _NAMES.findall(arguments))
            if old in self._dirty:
                self.faults.append(f"{self._mark}: {old} linked before its content is on the disk")
            self._known.add(new)
            self._unsynced.add(new)
        else:
            descriptor = _DESCRIPTOR.match(arguments)
            path = PurePath(descriptor[1] if descriptor else "/")
            if call in ("fsync", "fdatasync"):
                self._dirty.discard(path)
                self._unsynced = {name for name in self._unsynced if name.parent != path}
                self._moved = {name for name in self._moved if name.parent != path}
            elif path.is_relative_to(self.root):
                self._dirty.add(path)

    def _rename(self, old: PurePath, new: PurePath) -> None:
        for path in sorted(self._dirty | (self._unsynced - {old})):
            if path.is_relative_to(old):
                what = "content" if path in self._dirty else "name"
                self.faults.append(f"{self._mark}: {old} renamed before the {what} of {path}")
        self._unsynced = {name for name in self._unsynced if not name.is_relative_to(old)}
        self._dirty = {name for name in self._dirty if not name.is_relative_to(old)}
        self._unsynced.add(new)
        # What is hidden was not there to anybody.
        if old.is_relative_to(self.root) and not any(
            part.startswith(".") for part in old.relative_to(self.root).parts
        ):
            self._moved.add(old)
        below = {name for name in self._known if name.is_relative_to(old)}
        self._known |= {new, *(new / name.relative_to(old) for name in below)}

    def _settle(self) -> None:
        """At a mark, what was done before it must be on the disk, if it was to stay."""
        for what, paths in (("content", self._dirty), ("name", self._unsynced)):
            for path in sorted(paths):
                if Path(path).exists():
                    self.faults.append(f"{self._mark}: the {what} of {path} is not on the disk")
        for path in sorted(self._moved):
            if not Path(path).exists():
                self.faults.append(f"{self._mark}: that {path} is gone is not on the disk")
        self._dirty.clear()
        self._unsynced.clear()
        self._moved.clear()
