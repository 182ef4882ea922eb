"""How the images of an evaluation become what the network sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from multigrain.data.folder import ImageFolder
from multigrain.evaluate.batches import Batches, crop_batches, rect_batches
from multigrain.evaluate.gather import Gather
from multigrain.evaluate.inference import FloatArray
from multigrain.images.decode import decode_image
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess_image
from multigrain.images.rect import preprocess_rect


@dataclass(frozen=True)
class Transform:
    """
    Args:
        preprocessing: sizes, interpolation and normalisation.
        kind: "crop": the short side scaled, the centre cut: all images have one shape. "rect":
            the largest side scaled to ``preprocessing.size``, nothing cut: many shapes.
    """

    preprocessing: Preprocessing
    kind: Literal["crop", "rect"] = "crop"

    def image(self, image: Image.Image) -> FloatArray:
        """A decoded image as float32 (3, H, W)."""
        if self.kind == "rect":
            return preprocess_rect(image, self.preprocessing)
        return preprocess_image(image, self.preprocessing)

    def file(self, folder: ImageFolder, index: int) -> FloatArray:
        """An image of a folder as float32 (3, H, W).

        Raises:
            MultigrainError: IMAGE_*.
        """
        return self.image(decode_image(folder.read(index)))

    def batches(
        self,
        folder: ImageFolder,
        batch_size: int,
        *,
        rank: int,
        world: int,
        gather: Gather,
        threads: int = 0,
        alive: Callable[[], None] = lambda: None,
    ) -> Batches:
        """A worker's share of the images of a folder. Collective for "rect"."""
        if self.kind == "crop":
            return crop_batches(len(folder), batch_size, rank, world)
        return rect_batches(
            folder,
            self.preprocessing.size,
            batch_size,
            rank=rank,
            world=world,
            gather=gather,
            threads=threads or 2,
            alive=alive,
        )
