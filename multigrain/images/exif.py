"""The orientation in EXIF. Imported by the daemon: light."""

from __future__ import annotations

from typing import Final

_ORIENTATION_TAG: Final = 0x0112
# Sizes in bytes of EXIF's BYTE, SHORT and LONG.
_EXIF_WIDTHS: Final = {1: 1, 3: 2, 4: 4}


def exif_orientation(exif: bytes) -> int:
    """Returns the orientation of an EXIF block, or 0 if it has none or is damaged.

    Args:
        exif: from the byte order mark ("II" or "MM") on.
    """
    if exif[:2] not in (b"II", b"MM"):
        return 0

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], "little" if exif[:1] == b"I" else "big")

    start = number(4, 4)
    for entry in range(min(number(start, 2), 1000)):
        at = start + 2 + 12 * entry
        if at + 12 > len(exif):
            break
        if number(at, 2) == _ORIENTATION_TAG:
            value = number(at + 8, _EXIF_WIDTHS.get(number(at + 2, 2), 2))
            return value if 1 <= value <= 8 else 0
    return 0
