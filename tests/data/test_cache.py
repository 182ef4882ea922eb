"""The cache of decoded images."""

from __future__ import annotations

from pathlib import Path

import pytest

from multigrain.data import source
from multigrain.data.image_folder import ImageFolder, scan
from multigrain.data.source import DecodedCache, create_cache
from tests.data.datasets import write_dataset
from tests.data.test_pipeline import copies, data, equal
from tests.images.files import noise

pytestmark = pytest.mark.mindspore


def test_images_are_cached_up_to_the_budget() -> None:
    cache = DecodedCache(3 * 10 * 10 + 3 * 5 * 5)
    large, small, more = noise(10, 10), noise(5, 5), noise(1, 1)
    for index, image in enumerate((large, small, more)):
        cache.put(index, image)
    assert cache.get(0) is large
    assert cache.get(1) is small
    assert cache.get(2) is None


@pytest.mark.parametrize(("world", "kept"), [(1, True), (2, True), (3, False)])
def test_the_cache_is_on_only_if_every_worker_can_hold_the_dataset(
    tmp_path: Path, world: int, kept: bool
) -> None:
    folder = scan(write_dataset(tmp_path, classes=2, each=3, size=20))
    total = 6 * 3 * 20 * 20
    cache = create_cache(folder, world, budget=2 * total)
    cache.put(0, noise(20, 20))
    assert (cache.get(0) is not None) is kept


@pytest.mark.parametrize(("memory", "kept"), [(8 * 7200, True), (8 * 7200 - 8, False)])
def test_the_cache_is_at_most_an_eighth_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, kept: bool
) -> None:
    monkeypatch.setattr(source, "available_memory", lambda: memory)
    folder = scan(write_dataset(tmp_path, classes=2, each=3, size=20))
    cache = create_cache(folder, 1)
    cache.put(0, noise(20, 20))
    assert (cache.get(0) is not None) is kept


def test_every_file_is_read_once_and_the_batches_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path)
    made = data(root)
    read: list[int] = []
    original = ImageFolder.read
    monkeypatch.setattr(
        ImageFolder, "read", lambda self, index: read.append(index) or original(self, index)
    )
    list(made.epoch(0))
    again = copies(list(made.epoch(1)))
    assert sorted(read) == list(range(12))
    monkeypatch.setattr(DecodedCache, "put", lambda self, index, image: None)
    assert equal(again, list(data(root).epoch(1)))
