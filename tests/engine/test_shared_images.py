"""Memory in which large images lie on their way to an engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest

from multigrain.engine.shared_images import LargeImage, SharedImages, StoredImage

MIB = 1 << 20


@pytest.fixture
def images() -> Iterator[SharedImages]:
    made = SharedImages()
    yield made
    made.close()


def held(images: SharedImages) -> int:
    """Bytes of memory that are in use."""
    return 512 * os.fstat(images.fd).st_blocks


def stored(images: SharedImages, data: bytes) -> StoredImage:
    place = images.put(data)
    assert place is not None
    return place


def test_images_are_read_as_they_were_stored(images: SharedImages) -> None:
    contents = [bytes([number]) * size for number, size in enumerate((1, 4096, 70_000, 3 * MIB))]
    places = [stored(images, data) for data in contents]
    for place, data in zip(places, contents, strict=True):
        image = LargeImage(images.fd, place)
        assert len(image) == len(data)
        assert image.read() == data


def test_the_place_of_an_answered_image_is_used_again(images: SharedImages) -> None:
    first, second = stored(images, bytes(70_000)), stored(images, bytes(70_000))
    images.remove(first)
    third = stored(images, b"x" * 100_000)
    assert third.offset == first.offset
    assert LargeImage(images.fd, third).read() == b"x" * 100_000
    assert stored(images, bytes(70_000)).offset not in (third.offset, second.offset)


def test_memory_of_answered_images_is_returned_except_for_some_small_ones(
    images: SharedImages,
) -> None:
    places = [stored(images, bytes(20 * MIB)) for _ in range(2)]
    places += [stored(images, bytes(MIB)) for _ in range(40)]
    assert held(images) >= 80 * MIB
    for place in places:
        images.remove(place)
    assert held(images) <= 16 * MIB


def test_memory_of_a_larger_image_that_was_there_before_is_returned(images: SharedImages) -> None:
    images.remove(stored(images, bytes(MIB)))
    last = stored(images, bytes(MIB // 2 + 1))
    for place in [stored(images, bytes(MIB)) for _ in range(20)]:
        images.remove(place)
    images.remove(last)
    assert held(images) <= 16 * MIB


def test_no_two_images_share_a_place_however_many_there_were(images: SharedImages) -> None:
    """With as few addresses as a long time leaves, all are used again, and none twice at once."""
    with mock.patch("multigrain.engine.shared_images._SIZE", 32 * MIB):
        contents: list[tuple[StoredImage, bytes]] = []
        for number in range(500):
            size = (70_000, 3 * MIB, 300_000, MIB)[number % 4]
            data = bytes([number % 251]) * size
            place = images.put(data)
            assert place is not None
            contents.append((place, data))
            if len(contents) > 6:
                images.remove(contents.pop(number % 5)[0])
            for place, data in contents:
                assert LargeImage(images.fd, place).read() == data
        assert held(images) <= 32 * MIB


def test_when_all_addresses_are_in_use_an_image_is_not_stored(images: SharedImages) -> None:
    with mock.patch("multigrain.engine.shared_images._SIZE", 8 * MIB):
        places = [stored(images, bytes(3 * MIB)) for _ in range(2)]
        assert images.put(bytes(3 * MIB)) is None
        images.remove(places[1])
        assert stored(images, bytes(3 * MIB)).offset == places[1].offset


def test_without_memory_an_image_is_not_stored_and_its_place_is_free(images: SharedImages) -> None:
    with mock.patch("os.pwrite", side_effect=OSError):
        assert images.put(bytes(70_000)) is None
    with mock.patch("os.pwrite", return_value=10):
        assert images.put(bytes(70_000)) is None
    assert not held(images)


def test_where_memory_cannot_be_returned_its_place_is_used_again(images: SharedImages) -> None:
    place = stored(images, bytes(2 * MIB))
    with mock.patch("mmap.mmap", side_effect=OSError):
        images.remove(place)
    assert stored(images, bytes(2 * MIB)).offset == place.offset


def test_nothing_is_stored_for_an_engine_that_has_ended(images: SharedImages) -> None:
    ended = SharedImages()
    place = stored(ended, bytes(2 * MIB))
    ended.close()
    assert ended.put(bytes(70_000)) is None
    ended.remove(place)


def test_an_image_that_is_not_whole_is_not_read(images: SharedImages) -> None:
    place = stored(images, b"x")
    beyond = StoredImage(os.fstat(images.fd).st_size - 10, 100)
    assert LargeImage(images.fd, place).read() == b"x"
    with pytest.raises(OSError, match="ends early"):
        LargeImage(images.fd, beyond).read()
