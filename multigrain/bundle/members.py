"""What may lie in a bundle's folder or archive without being part of it.

Imports no package beside the standard library: the client imports it.
"""

from __future__ import annotations

from multigrain.data.file_names import is_system
from multigrain.text import is_printable

SIGNATURE_BYTES = 264
_MAX_NAME = 255
# First bytes -> name, and how to get a plain archive or folder.
_PACKED = (
    (b"\x1f\x8b", "a gzip file", "gunzip"),
    (b"BZh", "a bzip2 file", "bunzip2"),
    (b"\xfd7zXZ\x00", "an xz file", "unxz"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unzstd"),
    (b"\x04\x22\x4d\x18", "an lz4 file", "unlz4"),
    (b"\x1f\x9d", "a compress file", "uncompress"),
    (b"PK\x03\x04", "a zip archive", "unzip"),
    (b"PK\x05\x06", "a zip archive", "unzip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
    (b"Rar!\x1a\x07", "a rar archive", "unrar x"),
)


def is_passed_over(path: str) -> bool:
    """Whether a path in an archive is hidden or of a system: .DS_Store, ._model.json, __MACOSX/x.

    A path with ".." is not: it must be refused.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        return False
    return any(part.startswith(".") or is_system(part) for part in parts)


def is_plain(name: str) -> bool:
    """Whether a name is that of a file in a bundle's folder, and not a path or a hidden file.

    At most 255 bytes (NAME_MAX of Linux), without control characters.
    """
    return (
        0 < len(name) <= _MAX_NAME
        and is_printable(name)
        and not name.startswith(".")
        and "/" not in name
        and "\\" not in name
        and len(name.encode()) <= _MAX_NAME
    )


def compression(head: bytes) -> str:
    """What a file is instead of a plain tar archive, and how to unpack it; "" = not recognized.

    Args:
        head: its first ``SIGNATURE_BYTES``.
    """
    for signature, name, command in _PACKED:
        if head.startswith(signature):
            return f"it is {name}: unpack it ({command}) and import the tar or folder that is in it"
    return ""
