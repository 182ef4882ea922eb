"""Reading of JPEG: the header by its markers, the pixels with libjpeg-turbo.

The header decides what the file is (ITU-T T.81, table B.1) before the library sees it. The library
gets the file as one block: it cannot pause within an arithmetic-coded scan.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from PIL import Image

from multigrain.images.picture import Picture, damaged, exif_orientation, unsupported

_LOSSLESS: Final = 0xC3
_UNSUPPORTED_FRAMES: Final = {
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "a hierarchical JPEG"),
    0xCB: "a lossless JPEG with arithmetic coding",
    0xF7: "a JPEG-LS image",
}
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
_MAX_SEGMENTS: Final = 100_000
# A normal progressive file has about ten. Each scan costs the time of a whole decoding, so that a
# small file with thousands of them would keep a decoder busy for hours.
_MAX_SCANS: Final = 200


@dataclass
class _Markers:
    """What the segments before the first scan say."""

    frame: int = 0  # its marker; 0 = there is none
    header: bytes = b""  # the segment of the frame
    exif: int | None = None  # orientation of the first EXIF block; 0 = it has none
    jfif: bool = False
    transform: int | None = None  # of Adobe's marker
    scan: int = 0  # where the marker of the first scan starts
    ended: bool = False  # the file ends there, without a scan


class Jpeg(Picture):
    """A JPEG.

    Args:
        data: the file.

    Raises:
        MultigrainError: IMAGE_UNREADABLE (no complete header), IMAGE_FORMAT (a kind of JPEG that
            is not read).
    """

    form = "JPEG"

    def __init__(self, data: bytes) -> None:
        markers = _read_markers(data)
        kind, header = markers.frame, markers.header
        if not kind:
            if markers.ended:
                raise unsupported("a JPEG that holds tables only", "send a picture")
            raise damaged("JPEG", "it has no frame header")
        self.orientation = markers.exif or 1
        if len(header) < 6 or len(header) < 6 + 3 * header[5]:
            raise damaged("JPEG", "its header is incomplete")
        bits, self._channels = header[0], header[5]
        height, width = int.from_bytes(header[1:3], "big"), int.from_bytes(header[3:5], "big")
        self.size = width, height
        lossless = kind == _LOSSLESS
        if kind in _UNSUPPORTED_FRAMES:
            raise unsupported(_UNSUPPORTED_FRAMES[kind])
        if bits != 8:
            what = f"a {bits}-bit {'lossless ' if lossless else ''}JPEG"
            raise unsupported(what, "save it with 8 bits, or as PNG")
        if self._channels not in (1, 3, 4):
            raise unsupported(f"a JPEG with {self._channels} channels", "save it as gray or RGB")
        if height == 0 and width > 0:
            raise unsupported("a JPEG whose height follows its first scan", "save it again")
        if max(width, height) > _MAX_SIDE:
            raise unsupported(f"a JPEG with a side of more than {_MAX_SIDE} pixels")
        ratios = _sampling_ratios(header)
        if any(ratio % 1 for ratio in ratios):
            raise unsupported(
                "a JPEG with fractional sampling factors", "save it as 4:4:4 or 4:2:0"
            )
        # At a fraction the library would keep too little of colors with a quarter of the columns.
        self.reducible = not lossless and max(ratios, default=1) <= 2
        # The library does not convert the colors of a lossless file.
        ycc = markers.jfif or markers.transform == 1
        self._lossless_ycc = lossless and self._channels == 3 and ycc
        if lossless and self._channels == 4 and markers.transform == 2:
            raise unsupported("a lossless JPEG with YCCK colors", "save it as RGB")
        # What follows the picture may be of any kind: the library does not get it.
        self._data = memoryview(data)[: _end_of_scans(data, markers.scan)]

    def load(self, factor: int = 1) -> Image.Image:
        width, height = self.size
        # CMYK is stored inverted, as Adobe's programs do and as others assume without its marker.
        mode, raw = {1: ("L", "L"), 3: ("RGB", "RGB"), 4: ("CMYK", "CMYK;I")}[self._channels]
        if self._lossless_ycc:
            mode = raw = "YCbCr"
        # Arguments of the decoder: raw mode, color space ("" = by the markers and the channels'
        # names), divisor of the size, no faster but less exact transform.
        image = Image.frombytes(
            mode, (width // factor, height // factor), self._data, "jpeg", (raw, "", factor, 0)
        )
        return image if mode == "RGB" else image.convert("RGB")


def _read_markers(data: bytes) -> _Markers:
    """Reads the segments before the first scan."""
    markers = _Markers()
    position = 2
    # Like libjpeg: what precedes the next marker is skipped.
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None:
            break
        position, marker = found.end(), data[found.end() - 1]
        if marker in _ALONE:
            continue
        if marker in (_END_OF_IMAGE, _START_OF_SCAN):
            # In the middle of a file it is a sign of damage.
            markers.ended = marker == _END_OF_IMAGE and position == len(data)
            markers.scan = position - 2
            return markers
        # A length below that of itself is taken as empty, as in libjpeg.
        end = position + max(2, int.from_bytes(data[position : position + 2], "big"))
        if end > len(data):
            break
        if marker == _HIERARCHICAL:
            raise unsupported("a hierarchical JPEG")
        if _is_frame(marker):
            if not markers.frame:
                markers.frame, markers.header = marker, data[position + 2 : end]
        elif marker in _NOTED:
            _note(markers, marker, data[position + 2 : end])
        position = end
    raise damaged("JPEG", "its header is incomplete")


def _end_of_scans(data: bytes, position: int) -> int:
    """Checks the scans and what is between them, and returns where the picture ends.

    Without its end marker a file may be cut off, and the library fills what is missing with gray.

    Args:
        data: the file.
        position: where the marker of the first scan starts.
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


def _note(markers: _Markers, marker: int, body: bytes) -> None:
    """Notes what a segment of a program says of orientation and colors."""
    if marker == _APP1:
        # Only the first: a file could have thousands, which take time.
        if markers.exif is None and body.startswith(b"Exif\x00"):
            markers.exif = exif_orientation(body[6:])
    elif marker == _APP0:
        markers.jfif = markers.jfif or (body.startswith(b"JFIF\x00") and len(body) >= 14)
    elif body.startswith(b"Adobe") and len(body) >= 12:
        markers.transform = body[11]


def _sampling_ratios(header: bytes) -> list[float]:
    """Returns how many times more samples the finest channel has, in both directions."""
    factors = [header[7 + 3 * i] for i in range(header[5])]
    both = [[factor >> 4 for factor in factors], [factor & 15 for factor in factors]]
    if not all(all(side) for side in both):
        raise damaged("JPEG", "a sampling factor is 0")
    return [max(side) / n for side in both for n in side] if len(factors) > 1 else []


def _is_frame(marker: int) -> bool:
    return (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7
