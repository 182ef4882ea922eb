"""The markers of a JPEG (ITU-T T.81, table B.1): what the file is, and what decoding it takes.

Imported by the daemon: neither NumPy nor Pillow here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from multigrain.images.errors import damaged, unsupported
from multigrain.images.exif import exif_orientation

_LOSSLESS: Final = 0xC3
_PROGRESSIVE: Final = frozenset({0xC2, 0xCA})
_ARITHMETIC: Final = frozenset({0xC9, 0xCA})
_UNSUPPORTED_FRAMES: Final = {
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "a hierarchical JPEG"),
    0xCB: "a lossless JPEG with arithmetic coding",
    0xF7: "a JPEG-LS image",
}
_FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_APP0, _APP1 = 0xE0, 0xE1
_NOTED: Final = frozenset({_APP0, _APP1, 0xEE})
_HIERARCHICAL: Final = 0xDE
# Markers without a length: TEM, RST0..7, SOI.
_ALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})
# Bytes of 0xFF before a marker are fill bytes.
_MARKER: Final = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
# A marker with a length, or the end. In the data of a scan 0x00 follows a byte of 0xFF.
_SEGMENT: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
_MAX_SIDE: Final = 65500  # libjpeg's
# A file of 32 MiB has at most some hundred. Each costs time, however small it is.
_MAX_SEGMENTS: Final = 2_000
# Bytes between the segments of the header that belong to none: fill bytes, of which a few may
# precede each marker, and damage.
_MAX_FILL: Final = 65_536
# A normal progressive file has about ten. Each scan costs the time of a whole decoding, so that a
# small file with thousands of them would keep a decoder busy for hours.
_MAX_SCANS: Final = 200
# A thread that counts scans holds the interpreter's lock for so many bytes at most.
_WINDOW: Final = 2**20


@dataclass
class JpegHeader:
    """What the segments before the first scan say.

    Attributes:
        frame: marker of the frame.
        size: (width, height) in pixels, as stored.
        orientation: of EXIF, 1..8.
        factors: (horizontal, vertical) sampling factor of each channel.
        jfif: whether there is a JFIF segment.
        transform: the color transform of Adobe's segment.
        scan: where the marker of the first scan starts.
        scan_channels: channels of the first scan.
    """

    frame: int = 0
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    factors: tuple[tuple[int, int], ...] = ()
    jfif: bool = False
    transform: int | None = None
    scan: int = 0
    scan_channels: int = 0

    @property
    def channels(self) -> int:
        return len(self.factors)

    @property
    def lossless(self) -> bool:
        return self.frame == _LOSSLESS

    @property
    def arithmetic(self) -> bool:
        return self.frame in _ARITHMETIC

    @property
    def several_scans(self) -> bool:
        """Whether the library keeps all coefficients until it has read the last scan."""
        return self.frame in _PROGRESSIVE or self.scan_channels < self.channels

    @property
    def reducible(self) -> bool:
        """Whether the library can decode at a fraction of the size.

        It would keep too little of colors with a quarter of the columns.
        """
        return not self.lossless and max(_ratios(self.factors), default=1) <= 2

    def check(self) -> None:
        """Refuses kinds that are not read.

        Raises:
            MultigrainError: IMAGE_FORMAT.
        """
        width, height = self.size
        if self.channels not in (1, 3, 4):
            raise unsupported(f"a JPEG with {self.channels} channels", "save it as gray or RGB")
        if height == 0 and width > 0:
            raise unsupported("a JPEG whose height follows its first scan", "save it again")
        if max(width, height) > _MAX_SIDE:
            raise unsupported(f"a JPEG with a side of more than {_MAX_SIDE} pixels")
        if not _all_set(self.factors):
            raise damaged("JPEG", "a sampling factor is 0")
        if _fractional(self.factors):
            raise unsupported(
                "a JPEG with fractional sampling factors", "save it as 4:4:4 or 4:2:0"
            )
        if self.lossless and self.channels == 4 and self.transform == 2:
            raise unsupported("a lossless JPEG with YCCK colors", "save it as RGB")


def read_header(data: bytes) -> JpegHeader:
    """Reads the segments before the first scan.

    Raises:
        MultigrainError: IMAGE_UNREADABLE (no complete header), IMAGE_FORMAT (a kind of JPEG that
            is not read).
    """
    header = JpegHeader()
    frame = b""
    exif: int | None = None
    position = 2
    fill = _MAX_FILL
    size = len(data)
    # Like libjpeg: what precedes the next marker is skipped.
    for _ in range(_MAX_SEGMENTS):
        # Nearly always there is nothing to skip, and a pattern takes longer.
        if position + 1 < size and data[position] == 0xFF and 0 < data[position + 1] < 0xFF:
            position += 2
        else:
            found = _MARKER.search(data, position, position + fill + 2)
            if found is None:
                if position + fill + 2 < size:
                    raise damaged(
                        "JPEG", f"more than {_MAX_FILL} bytes of its header are no segments"
                    )
                break
            fill -= found.start() - position
            position = found.end()
        marker = data[position - 1]
        if marker in _ALONE:
            continue
        if marker in (_END_OF_IMAGE, _START_OF_SCAN):
            if header.frame:
                _read_frame(header, frame)
                header.orientation = exif or 1
                header.scan = position - 2
                header.scan_channels = data[position + 2] if position + 2 < size else 0
                return header
            if marker == _END_OF_IMAGE and position == size:
                raise unsupported("a JPEG that holds tables only", "send a picture")
            # In the middle of a file the end is a sign of damage.
            raise damaged("JPEG", "it has no frame header")
        # A length below that of itself is taken as empty, as in libjpeg.
        end = position + max(2, int.from_bytes(data[position : position + 2], "big"))
        if end > size:
            break
        if marker == _HIERARCHICAL:
            raise unsupported("a hierarchical JPEG")
        if marker in _FRAMES:
            if not header.frame:
                header.frame, frame = marker, data[position + 2 : end]
        elif marker in _NOTED:
            body = data[position + 2 : end]
            if marker != _APP1:
                _note(header, marker, body)
            elif exif is None and body.startswith(b"Exif\x00"):
                # Only the first: a file could have thousands, which take time.
                exif = exif_orientation(body[6:])
        position = end
    else:
        raise unsupported(f"a JPEG with more than {_MAX_SEGMENTS} segments", "save it again")
    raise damaged("JPEG", "its header is incomplete")


def end_of_scans(data: bytes, position: int) -> int:
    """Checks the scans and what is between them, and returns where the picture ends.

    Without its end marker a file may be cut off, and the library fills what is missing with gray.

    Args:
        data: the file.
        position: where the marker of the first scan starts.

    Raises:
        MultigrainError: IMAGE_UNREADABLE, IMAGE_FORMAT.
    """
    scans = 0
    for _ in range(_MAX_SEGMENTS):
        found = _SEGMENT.search(data, position)
        if found is None:
            break
        position, marker = found.end(), data[found.end() - 1]
        if marker == _END_OF_IMAGE:
            return position
        if marker == _START_OF_SCAN:
            scans += 1
            if scans > _MAX_SCANS:
                raise unsupported(f"a JPEG with more than {_MAX_SCANS} scans")
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
    else:
        raise unsupported(f"a JPEG with more than {_MAX_SEGMENTS} segments", "save it again")
    raise damaged("JPEG", "its end marker is missing, so it may be cut off")


def scan_channels(data: bytes, position: int) -> list[int]:
    """Returns the number of channels of each scan, without reading what is between them.

    Segments may look like scans: there are never fewer than in the list, and at most as many as
    are read.

    Args:
        data: the file.
        position: where the marker of the first scan starts.
    """
    found: list[int] = []
    while position < len(data) and len(found) <= _MAX_SCANS:
        end = position + _WINDOW
        at = data.find(b"\xff\xda", position, end + 1)
        if at < 0:
            position = end
            continue
        found.append(data[at + 4] if at + 4 < len(data) else 0)
        position = at + 2
    return found


def _read_frame(header: JpegHeader, frame: bytes) -> None:
    """Reads the segment of a frame."""
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        raise damaged("JPEG", "its header is incomplete")
    header.size = int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big")
    if header.frame in _UNSUPPORTED_FRAMES:
        raise unsupported(_UNSUPPORTED_FRAMES[header.frame])
    bits = frame[0]
    if bits != 8:
        what = f"a {bits}-bit {'lossless ' if header.lossless else ''}JPEG"
        raise unsupported(what, "save it with 8 bits, or as PNG")
    header.factors = _factors(frame[6 : 6 + 3 * frame[5]])


# Nearly all files have one of a few: computing them takes longer than all else in the header.
@lru_cache(maxsize=64)
def _factors(channels: bytes) -> tuple[tuple[int, int], ...]:
    """The sampling factors of each channel, of which three bytes are stored."""
    return tuple((factor >> 4, factor & 15) for factor in channels[1::3])


@lru_cache(maxsize=64)
def finest(factors: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The largest horizontal and the largest vertical sampling factor."""
    return max(across for across, _ in factors), max(down for _, down in factors)


@lru_cache(maxsize=64)
def _all_set(factors: tuple[tuple[int, int], ...]) -> bool:
    return all(factor for pair in factors for factor in pair)


@lru_cache(maxsize=64)
def _fractional(factors: tuple[tuple[int, int], ...]) -> bool:
    """Whether the samples of a channel are no whole number of those of the finest one."""
    return any(ratio % 1 for ratio in _ratios(factors))


@lru_cache(maxsize=64)
def _ratios(factors: tuple[tuple[int, int], ...]) -> tuple[float, ...]:
    """How many times more samples the finest channel has, in both directions."""
    both = list(zip(*factors, strict=True))
    return tuple(max(side) / n for side in both for n in side) if len(factors) > 1 else ()


def _note(header: JpegHeader, marker: int, body: bytes) -> None:
    """Notes what a segment of a program says of the colors."""
    if marker == _APP0:
        header.jfif = header.jfif or (body.startswith(b"JFIF\x00") and len(body) >= 14)
    elif body.startswith(b"Adobe") and len(body) >= 12:
        header.transform = body[11]
