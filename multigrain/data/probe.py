"""Checks a random sample of a dataset for unreadable files before a job begins."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from random import Random

from multigrain.data.image_folder import ImageFolder
from multigrain.data.source import too_many_unreadable
from multigrain.errors import MultigrainError
from multigrain.images.decode import decode_image


def probe(
    folder: ImageFolder,
    max_unreadable: float,
    *,
    files: int = 512,
    seed: int = 0,
    threads: int = 2,
) -> dict[str, str]:
    """Decodes a random sample of the images, or all of them if there are few.

    Args:
        folder: the dataset.
        max_unreadable: fraction of the images that may be unreadable.
        files: size of the sample.
        seed: of the sample.
        threads: decoder threads.

    Returns:
        The unreadable files of the sample, path -> reason.

    Raises:
        MultigrainError: DATASET, if more than the allowed fraction is unreadable. For a sample,
            only if it exceeds the fraction by three standard deviations; the job counts exactly.
    """
    whole = len(folder) <= files
    chosen = range(len(folder)) if whole else Random(seed).sample(range(len(folder)), files)

    def reason(index: int) -> str | None:
        try:
            decode_image(folder.read(index), folder.limits)
        except MultigrainError as error:
            return error.message
        return None

    with ThreadPoolExecutor(threads) as pool:
        reasons = zip(chosen, pool.map(reason, chosen), strict=True)
        unreadable = {folder.paths[index]: text for index, text in reasons if text is not None}
    allowed = max_unreadable * len(chosen)
    if not whole:
        allowed += 3 * math.sqrt(allowed * (1 - max_unreadable))
    if len(unreadable) > allowed:
        raise too_many_unreadable(unreadable, len(chosen), max_unreadable)
    return unreadable
