"""Image folders for tests."""

from __future__ import annotations

from pathlib import Path

from tests.images.files import encode, noise


def write_dataset(
    root: Path, classes: int = 3, each: int = 4, size: int = 24, form: str = "PNG"
) -> Path:
    """Writes ``each`` different images to each of the folders c0, c1, ..."""
    for number in range(classes):
        folder = root / f"c{number}"
        folder.mkdir(parents=True)
        for index in range(each):
            image = noise(size, size, seed=number * 1000 + index)
            (folder / f"{index:03d}.{form.lower()}").write_bytes(encode(image, form))
    return root
