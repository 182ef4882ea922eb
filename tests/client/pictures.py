"""Images for the fake model, and the vectors that it returns."""

from __future__ import annotations

import numpy as np

from tests.client.fake_server import vector_of


def images_of(count: int, start: int = 0) -> list[bytes]:
    """Distinct byte strings; the fake model sees their first bytes."""
    return [f"{number:08d}".encode() for number in range(start, start + count)]


def expected(images: list[bytes]) -> np.ndarray:
    return np.stack([vector_of(data) for data in images])
