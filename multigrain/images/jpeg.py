"""Reading of JPEG: the header by its markers, the pixels with libjpeg-turbo.

The header decides what the file is (ITU-T T.81, table B.1) before the library sees it. The library
gets the file as one block: it cannot pause within an arithmetic-coded scan.
"""

from __future__ import annotations

from typing import Final

from PIL import Image

from multigrain.images.picture import (
    Picture,
    damaged,
    exif_orientation,
    unsupported,
    xmp_orientation,
)

# Frame markers that are read. Progressive and arithmetic ones can be reduced too.
_BASELINE_TO_PROGRESSIVE: Final = frozenset({0xC0, 0xC1, 0xC2})
_ARITHMETIC: Final = frozenset({0xC9, 0xCA})
_LOSSLESS: Final = 0xC3
_UNSUPPORTED_FRAMES: Final = {
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "a hierarchical JPEG"),
    0xCB: "a lossless JPEG with arithmetic coding",
    0xF7: "a JPEG-LS image",
}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_APP1, _APP14 = 0xE1, 0xEE
_HIERARCHICAL: Final = 0xDE
# Markers without a length: TEM, RST0..7, SOI.
_ALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})
# A normal progressive file has about ten. Each scan costs the time of a whole decoding, so that a
# small file with thousands of them would keep a decoder busy for hours.
_MAX_SCANS: Final = 200


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
        self._data = data
        frame, exif, xmp = _read_markers(data)
        kind, header = frame
        self.orientation = exif or xmp or 1
        if len(header) < 6:
            raise damaged("JPEG", "its header is incomplete")
        bits, height, width, self._channels = (
            header[0],
            int.from_bytes(header[1:3], "big"),
            int.from_bytes(header[3:5], "big"),
            header[5],
        )
        self.size = width, height
        if kind in _UNSUPPORTED_FRAMES:
            raise unsupported(_UNSUPPORTED_FRAMES[kind])
        if bits != 8:
            lossless = "lossless " if kind == _LOSSLESS else ""
            raise unsupported(f"a {bits}-bit {lossless}JPEG", "save it with 8 bits, or as PNG")
        if self._channels not in (1, 3, 4):
            raise unsupported(f"a JPEG with {self._channels} channels", "save it as gray or RGB")
        if height == 0 and width > 0:
            raise unsupported("a JPEG whose height follows its first scan", "save it again")
        self.reducible = kind != _LOSSLESS
        if kind in (0xC2, 0xCA) and data.count(b"\xff\xda") > _MAX_SCANS:
            raise unsupported(f"a progressive JPEG with more than {_MAX_SCANS} scans")

    def load(self, factor: int = 1) -> Image.Image:
        width, height = self.size
        # CMYK is stored inverted, as Adobe's programs do and as others assume without its marker.
        mode, raw = {1: ("L", "L"), 3: ("RGB", "RGB"), 4: ("CMYK", "CMYK;I")}[self._channels]
        # Arguments of the decoder: raw mode, color space ("" = by the markers and the channels'
        # names), divisor of the size, no faster but less exact transform.
        image = Image.frombytes(
            mode, (width // factor, height // factor), self._data, "jpeg", (raw, "", factor, 0)
        )
        return image if mode == "RGB" else image.convert("RGB")


def _read_markers(data: bytes) -> tuple[tuple[int, bytes], int, int]:
    """Reads the segments before the first scan.

    Returns:
        ((frame marker, its segment), orientation of EXIF, of XMP); an orientation is 0 if absent.
    """
    frame: tuple[int, bytes] | None = None
    exif = xmp = 0
    position = 2
    while True:
        # Like libjpeg: what precedes the next marker is skipped.
        position = data.find(b"\xff", position) + 1
        if position == 0:
            raise damaged("JPEG", "its header is incomplete")
        marker = data[position] if position < len(data) else 0xFF
        if position >= len(data):
            raise damaged("JPEG", "its header is incomplete")
        if marker in (0x00, 0xFF):
            continue
        position += 1
        if marker in _ALONE:
            continue
        if marker in (_END_OF_IMAGE, _START_OF_SCAN):
            break
        length = int.from_bytes(data[position : position + 2], "big")
        end = position + length
        if length < 2 or end > len(data):
            raise damaged("JPEG", "its header is incomplete")
        if marker == _HIERARCHICAL:
            raise unsupported("a hierarchical JPEG")
        if _is_frame(marker):
            frame = frame or (marker, data[position + 2 : end])
        elif marker == _APP1:
            start = data[position + 2 : position + 31]
            if start.startswith(b"Exif\x00") and not exif:
                exif = exif_orientation(data[position + 8 : end])
            elif start.startswith(b"http://ns.adobe.com/xap/1.0/\x00") and not xmp:
                xmp = xmp_orientation(data[position + 31 : end])
        position = end
    if frame is None:
        raise damaged("JPEG", "it has no frame header")
    return frame, exif, xmp


def _is_frame(marker: int) -> bool:
    return (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7
