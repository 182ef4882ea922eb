"""Reads the headers of untrusted tar archives, and writes those of archives for download.

``tarfile`` reads headers by regular expressions and by recursion, and believes the sizes that they
state: an archive can stop the process for minutes (CVE-2024-6232) or exhaust its stack. This reader
takes one block of 512 bytes after the other, has a bound for everything, and knows only what the
usual programs write: GNU tar, bsdtar, busybox, 7-Zip and Python, in the formats v7, ustar, GNU and
pax (POSIX.1-2001, "pax Interchange Format").

Imports no package beside the standard library: the client imports it.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

BLOCK: Final = 512
# Programs fill the archive's last record (20 blocks) with zeros.
RECORD: Final = 20 * BLOCK

# A long name or a pax header takes some hundred bytes; extended attributes some thousand.
_MAX_EXTENSION: Final = 64 * 1024
_MAX_EXTENSIONS: Final = 1 << 20
_MAX_NAME: Final = 4096  # Linux's PATH_MAX
_MAX_SIZE: Final = 2**63 - 1
_MAX_SIZE_DIGITS: Final = 19
_CHECKSUM: Final = slice(148, 156)
_USTAR, _GNU, _V7 = b"ustar\x00", b"ustar ", bytes(6)

_FILE: Final = "file"
# Type flag -> kind of the entry. Of all but files the size must be 0.
_KINDS: Final = {
    b"0": _FILE,
    b"\0": _FILE,
    b"1": "link",
    b"2": "link",
    b"3": "special file",
    b"4": "special file",
    b"5": "folder",
    b"6": "special file",
}
# What cannot be passed over, because its data is in a form of its own.
_REFUSED: Final = {b"S": "sparse file"}
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_EXTENSIONS: Final = (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK)


class TarError(ValueError):
    """The archive is damaged, or has something that no bundle needs. The text says what."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of an archive.

    Attributes:
        name: its path as the archive states it, of a folder without a slash at the end; bytes
            that are not UTF-8 are surrogates.
        kind: "file", "folder", "link" or "special file".
        size: of its data in bytes; 0 for all but files.
        offset: of its data in the archive.
    """

    name: str
    kind: str
    size: int
    offset: int

    @property
    def is_file(self) -> bool:
        return self.kind == _FILE


@dataclass(slots=True)
class _Extension:
    """What the headers before an entry say about it; None = nothing."""

    name: str | None = None
    size: int | None = None


def is_header(block: bytes) -> bool:
    """Whether a file that begins with these bytes is a tar archive: its first header is valid."""
    if len(block) < BLOCK:
        return False
    try:
        _check(block[:BLOCK])
    except TarError:
        return False
    return True


def entries(archive: BinaryIO, *, max_entries: int) -> Iterator[Entry]:
    """The entries of an archive up to its end, which is a block of zeros.

    Reads headers only: at most 64 KiB at a time, and seeks over the data.

    Args:
        archive: seekable, at the archive's beginning.
        max_entries: limit of entries.

    Raises:
        TarError: if the archive is refused.
    """
    # A size may be larger than any offset that the file system can seek to.
    length = archive.seek(0, os.SEEK_END)
    archive.seek(0)
    number, extensions = 0, 0
    extension, before = _Extension(), b""
    while True:
        block = archive.read(BLOCK)
        if len(block) < BLOCK:
            raise TarError(_NO_END)
        if _is_zero(block):
            if before:
                raise TarError("it ends with the header of a long name")
            return
        _check(block)
        flag, size = block[156:157], _size(block[124:136])
        if flag in _EXTENSIONS:
            extensions += size
            if size > _MAX_EXTENSION or extensions > _MAX_EXTENSIONS:
                raise TarError(f"it has a header of {size} bytes, or too many of them")
            if flag in before:
                raise TarError("it has two headers of one kind for one entry")
            before += flag
            _extend(extension, flag, _data(archive, size))
            continue
        number += 1
        if number > max_entries:
            raise TarError(f"it has more than {max_entries} entries")
        entry = _entry(block, flag, size, extension, archive.tell())
        extension, before = _Extension(), b""
        if entry.size > length - entry.offset:
            raise TarError(_NO_END)
        yield entry
        archive.seek(entry.offset + _padded(entry.size))


def _entry(block: bytes, flag: bytes, size: int, extension: _Extension, offset: int) -> Entry:
    name = extension.name if extension.name is not None else _name(block)
    if not name or len(name) > _MAX_NAME or "\0" in name:
        raise TarError(f"{name[:100]!r} is not a plain file name")
    if extension.size is not None:
        size = extension.size
    kind = _KINDS.get(flag)
    if kind is None:
        what = _REFUSED.get(flag, "special file")
        raise TarError(f"{name[:100]!r} is a {what} and not a regular file")
    if flag == b"\0" and name.endswith("/"):
        kind = "folder"  # in the format v7, which has no flag for it
    if size and kind != _FILE:
        raise TarError(f"{name[:100]!r} is a {kind} with data")
    return Entry((name.rstrip("/") or name) if kind == "folder" else name, kind, size, offset)


def _check(block: bytes) -> None:
    """Raises TarError for a block that is not a header."""
    if block[257:263] not in (_USTAR, _GNU, _V7):
        raise TarError(_NO_HEADER)
    # The checksum counts as spaces.
    if _octal(block[_CHECKSUM]) != sum(block) - sum(block[_CHECKSUM]) + 8 * 0x20:
        raise TarError(_NO_HEADER)


_NO_END: Final = "it is not a complete, uncompressed tar archive: its end is missing"
_NO_HEADER: Final = "it is not a complete, uncompressed tar archive: a header is damaged"


def _is_zero(block: bytes) -> bool:
    return not block.strip(b"\0")


def _octal(field: bytes) -> int:
    digits = field.partition(b"\0")[0].strip(b" ")
    if digits.strip(b"01234567"):
        raise TarError(_NO_HEADER)
    return int(digits or b"0", 8)


def _size(field: bytes) -> int:
    """An octal number; or one in base 256 (GNU), which has its first bit set."""
    if not field[0] & 0x80:
        return _octal(field)
    size = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    if field[0] & 0x40 or size > _MAX_SIZE:
        raise TarError("it has a file with an impossible size")
    return size


def _name(block: bytes) -> str:
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == _USTAR else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _data(archive: BinaryIO, size: int) -> bytes:
    data = archive.read(_padded(size))
    if len(data) < _padded(size):
        raise TarError("it is truncated")
    return data[:size]


def _extend(extension: _Extension, flag: bytes, data: bytes) -> None:
    if flag == _LONG_NAME:
        extension.name = _text(data)
    elif flag in (_PAX, _PAX_GLOBAL):
        for key, value in _records(data):
            _set(extension, flag, key, value)
    # The name of a link's target: links are refused.


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records ``"%d %s=%s\\n"`` (length of the record, key, value) of a pax header."""
    at = 0
    while at < len(data):
        digits = data[at : at + 6].partition(b" ")[0]  # at most 64 KiB: 5 digits
        length = int(digits) if digits.isdigit() and len(digits) < 6 else 0
        record = data[at + len(digits) + 1 : at + length]
        key, separator, value = record[:-1].partition(b"=")
        if not key or not separator or record[-1:] != b"\n" or at + length > len(data):
            raise TarError("it has a damaged pax header")
        yield key, value
        at += length


def _set(extension: _Extension, flag: bytes, key: bytes, value: bytes) -> None:
    if key.startswith(b"GNU.sparse."):
        raise TarError("it has a sparse file and not a regular file: pack without --sparse")
    if key not in (b"path", b"size"):
        return  # times, owners, attributes
    if flag == _PAX_GLOBAL:
        raise TarError("it has a pax header that names all of its entries")
    if key == b"path":
        extension.name = value.decode("utf-8", "surrogateescape")
    elif value.isdigit() and len(value) <= _MAX_SIZE_DIGITS and int(value) <= _MAX_SIZE:
        extension.size = int(value)
    else:
        raise TarError("it has a file with an impossible size")


def header(name: str, size: int, mode: int) -> bytes:
    """The header of a regular file, without owner and time: equal files have equal headers.

    Args:
        name: a plain file name.
        size: in bytes.
        mode: permissions.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, mode
    return info.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """Zeros after a file's data, up to the next header."""
    return bytes(_padded(size) - size)


def end(size: int) -> bytes:
    """The end of an archive whose headers and files have ``size`` bytes: two blocks of zeros or
    more, up to a whole record."""
    return bytes(-(-(size + 2 * BLOCK) // RECORD) * RECORD - size)
