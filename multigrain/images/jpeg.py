"""Reading of JPEG: the header by its markers, the pixels with libjpeg-turbo.

The library gets the file as one block: it cannot pause within an arithmetic-coded scan.
"""

from __future__ import annotations

from PIL import Image

from multigrain.images.jpeg_header import end_of_scans, read_header
from multigrain.images.picture import Picture


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
        header = read_header(data)
        header.check()
        self.orientation = header.orientation
        self.size = header.size
        self.reducible = header.reducible
        self._channels = header.channels
        self._lossless = header.lossless
        ycc = header.jfif or header.transform == 1
        self._lossless_ycc = header.lossless and self._channels == 3 and ycc
        # What follows the picture may be of any kind: the library does not get it.
        self._data = memoryview(data)[: end_of_scans(data, header.scan)]

    def load(self, factor: int = 1) -> Image.Image:
        width, height = self.size
        # CMYK is stored inverted, as Adobe's programs do and as others assume without its marker.
        mode, raw = ("CMYK", "CMYK;I") if self._channels == 4 else ("RGB", "RGB")
        # The library does not convert the colors of a lossless file.
        if self._lossless and self._channels == 1:
            mode = raw = "L"
        elif self._lossless_ycc:
            mode = raw = "YCbCr"
        # Arguments of the decoder: raw mode, color space ("" = by the markers and the channels'
        # names), divisor of the size, no faster but less exact transform.
        image = Image.frombytes(
            mode, (width // factor, height // factor), self._data, "jpeg", (raw, "", factor, 0)
        )
        return image if mode == "RGB" else image.convert("RGB")
