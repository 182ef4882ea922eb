"""Decoded pictures kept in memory, where the whole dataset fits."""

from __future__ import annotations

import io

from PIL import Image

from multigrain.data.folder import ImageFolder
from multigrain.errors import MultigrainError
from multigrain.images.decode import FORMATS

BUDGET = 512 * 2**20  # bytes, over all workers
_SAMPLES = 64


class DecodedCache:
    """Keeps pictures up to a number of bytes; what is in stays in. Threads may share it.

    For small pictures decoding is a third of the loader's work (measured: 3,800 to 7,400 views
    of 48 px a second on one thread).

    Args:
        budget: largest sum of the sizes in memory, in bytes; 0 keeps nothing.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget
        self._images: dict[int, Image.Image] = {}

    def get(self, index: int) -> Image.Image | None:
        """The picture, or None if it is not kept."""
        return self._images.get(index)

    def put(self, index: int, image: Image.Image) -> None:
        """Keeps a picture of mode RGB, if there is room. Nobody may change it afterwards."""
        size = 3 * image.width * image.height
        # Two threads may both find room for the last picture: the budget is no hard limit.
        if size <= self._left and index not in self._images:
            self._left -= size
            self._images[index] = image


def cache_for(folder: ImageFolder, world: int, budget: int = BUDGET) -> DecodedCache:
    """A cache if a worker's share of the budget holds the whole dataset, else one that is off.

    Every worker comes to see every image, so each needs room for all. The size is estimated
    from the headers of some files; keeping a part only would win little and cost the memory.
    """
    step = max(1, len(folder) // _SAMPLES)
    sizes = [_pixels(folder, index) * 3 for index in range(0, len(folder), step)]
    estimate = sum(sizes) / len(sizes) * len(folder)
    share = budget // world
    return DecodedCache(share if estimate <= share else 0)


def _pixels(folder: ImageFolder, index: int) -> int:
    try:
        with Image.open(io.BytesIO(folder.read(index)), formats=FORMATS) as image:
            return image.width * image.height
    except (MultigrainError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0  # an unreadable file is reported when its turn comes
