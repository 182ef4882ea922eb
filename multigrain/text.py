"""Names and messages as text that is safe to print, and file names as text that can be stored.

Python holds a file name that is not UTF-8 as a string with unpaired surrogates, which no encoding
can write. Names from elsewhere (files, jobs, classes, servers) may also hold characters that
control a terminal or reorder the text around them.
"""

from __future__ import annotations

import os
import re
import unicodedata

# Control characters, line separators, invisible characters, direction marks and overrides, and
# unpaired surrogates. Not the joiners U+200C and U+200D, which Persian, Hindi and emoji need.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
# A backslash that `stored_path` must not leave as it is, because it would read as an escape.
_LOOKS_ESCAPED = re.compile(r"\\(?=x[0-9a-f]{2})")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def printable(text: str) -> str:
    r"""The text on one line, with everything escaped that a terminal must not get.

    A byte of a file name that is not UTF-8 becomes ``\xe9``, ESC becomes ``\x1b``, a newline
    ``\x0a``, other characters ``\u202e``. All other characters stay, backslashes too: the result
    is for people, see ``stored_path`` for programs.
    """
    return UNPRINTABLE.sub(_escape, text)


def printable_lines(text: str) -> list[str]:
    """The lines of a long text such as the tail of a log, each ``printable``; tabs are expanded."""
    return [printable(line.expandtabs()) for line in re.split("\r\n|\n", text)]


def cell_width(text: str) -> int:
    """Columns of a terminal that a printable text takes: East Asian wide characters take two,
    combining ones none (Unicode Standard Annex 11)."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.category(character) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(character) in ("W", "F")
        else 1
        for character in text
    )


def is_printable(text: str) -> bool:
    """Whether ``printable`` leaves the text as it is."""
    return UNPRINTABLE.search(text) is None


def is_text(name: str) -> bool:
    """Whether UTF-8 can represent the name: it has no unpaired surrogates."""
    return _SURROGATE.search(name) is None


def stored_path(path: str) -> str:
    r"""A path as text for files that hold UTF-8 only, such as CSV, Parquet and JSON.

    Each byte that is not UTF-8 becomes ``\xe9`` (two lowercase hexadecimal digits), and so do the
    bytes of characters that ``printable`` escapes, because such files are read in terminals too. A
    backslash that stands before such an escape in the name itself becomes ``\x5c``. All other paths
    stay as they are, so that different paths stay different; ``original_path`` is the inverse.
    """
    try:
        # By its bytes on disk, which a locale without UTF-8 decodes differently.
        path = os.fsencode(path).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        path = path.encode("utf-8", "replace").decode()
    return UNPRINTABLE.sub(_escape_bytes, _LOOKS_ESCAPED.sub(r"\\x5c", path))


def original_path(stored: str) -> str:
    """The path that ``stored_path`` has written, as Python opens it."""
    raw = _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), stored.encode())
    return os.fsdecode(raw)


def normalize(name: str) -> str:
    """The form in which names are compared (NFC): a Mac stores accents as own characters."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _escape_bytes(match: re.Match[str]) -> str:
    raw = match[0].encode("utf-8", "surrogateescape")
    return "".join(f"\\x{byte:02x}" for byte in raw)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        # A byte that is not UTF-8, as `os.fsdecode` holds it.
        code -= 0xDC00
        return f"\\x{code:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
