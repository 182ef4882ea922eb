"""GIF: the first frame on its canvas, and blocks that must not matter."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.decode import decode, image_size
from tests.images.files import encode, noise, reference

RED, LIME, BLUE, GRAY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)
COLORS = bytes((*RED, *LIME, *BLUE, *GRAY))


def pixels_of(indices: list[int]) -> bytes:
    """LZW of 2-bit indices that clears its table before every index: codes of 3 bits."""
    codes = [code for index in indices for code in (4, index)] + [5]
    number = sum(code << 3 * i for i, code in enumerate(codes))
    body = number.to_bytes((3 * len(codes) + 7) // 8, "little")
    blocks = b"".join(
        bytes((len(body[i : i + 255]),)) + body[i : i + 255] for i in range(0, len(body), 255)
    )
    return b"\x02" + blocks + b"\0"


def frame(
    indices: list[int],
    size: tuple[int, int],
    place: tuple[int, int] = (0, 0),
    *,
    local: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    flags = (0x81 if local else 0) | (0x40 if interlaced else 0)
    return b"," + struct.pack("<4HB", *place, *size, flags) + local + pixels_of(indices)


def gif(*blocks: bytes, size: tuple[int, int] = (3, 2), table: bytes = COLORS) -> bytes:
    flags = 0x81 if table else 0
    return b"GIF89a" + struct.pack("<2H3B", *size, flags, 0, 0) + table + b"".join(blocks) + b";"


def clear(index: int) -> bytes:
    """A graphic control extension with a transparent index."""
    return bytes((0x21, 0xF9, 4, 1, 0, 0, index, 0))


INDICES = [0, 1, 2, 3, 2, 1]
EXPECTED = np.array([[RED, LIME, BLUE], [GRAY, BLUE, LIME]])


def test_a_plain_picture() -> None:
    np.testing.assert_array_equal(decode(gif(frame(INDICES, (3, 2)))), EXPECTED)
    np.testing.assert_array_equal(decode(gif(frame(INDICES, (3, 2)))[:-1]), EXPECTED)


def test_a_local_table_is_used_and_a_missing_one_is_gray() -> None:
    local = COLORS[::-1]
    table = np.frombuffer(local, np.uint8).reshape(-1, 3)
    for first in (COLORS, b""):
        data = gif(frame(INDICES, (3, 2), local=local), table=first)
        np.testing.assert_array_equal(decode(data), table[INDICES].reshape(2, 3, 3))
    assert decode(gif(frame(INDICES, (3, 2)), table=b"")).shape == (2, 3, 3)


@pytest.mark.parametrize("index", range(4))
def test_a_transparent_index_is_white(index: int) -> None:
    expected = EXPECTED.copy()
    expected[np.array(INDICES).reshape(2, 3) == index] = 255
    np.testing.assert_array_equal(decode(gif(clear(index), frame(INDICES, (3, 2)))), expected)


def test_a_small_first_frame_lies_on_white() -> None:
    data = gif(frame(INDICES, (3, 2), (2, 1)), size=(6, 4))
    expected = np.full((4, 6, 3), 255)
    expected[1:3, 2:5] = EXPECTED
    np.testing.assert_array_equal(decode(data), expected)
    assert image_size(data) == (6, 4)


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (3, 1)])
def test_a_frame_enlarges_a_small_canvas(size: tuple[int, int]) -> None:
    np.testing.assert_array_equal(decode(gif(frame(INDICES, (3, 2)), size=size)), EXPECTED)


def test_interlaced_rows_are_put_in_order() -> None:
    order = [*range(0, 10, 8), *range(4, 10, 8), *range(2, 10, 4), *range(1, 10, 2)]
    rows = [row % 4 for row in range(10)]
    data = gif(frame([rows[row] for row in order], (1, 10), interlaced=True), size=(1, 10))
    table = np.frombuffer(COLORS, np.uint8).reshape(-1, 3)
    np.testing.assert_array_equal(decode(data)[:, 0], table[rows])


@pytest.mark.parametrize(
    "block",
    [
        b"!\xfe" + b"\xff" + b"x" * 255 + b"\0",
        b"!\xfe\0",
        b"!\xfe" + (b"\xff" + b"x" * 255) * 5000 + b"\0",
        b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0",
        b"!\xff\x0bXMP DataXMP" + b"<x:xmpmeta/>" + bytes(range(255, -1, -1)) + b"\0",
        b"!\xff\x0bICCRGBG1012\x02xx\0",
        b"!\x99\x03abc\0",
        b"\0",
    ],
)
def test_other_blocks_do_not_matter(block: bytes) -> None:
    np.testing.assert_array_equal(decode(gif(block, frame(INDICES, (3, 2)))), EXPECTED)


def test_what_follows_the_first_frame_does_not_matter() -> None:
    for rest in (frame(INDICES, (3, 2))[:9], b"!\xf9", b"\xff\xff", frame([1] * 6, (3, 2))):
        np.testing.assert_array_equal(decode(gif(frame(INDICES, (3, 2)), rest)), EXPECTED)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GIF89a", "header"),
        (gif()[:20], "color table"),
        (gif()[:-1], "before its first frame"),
        (gif() + b"x", "before its first frame"),
        (gif(b"!\xfe\x05ab"), "before its first frame"),
        (gif(b",\0\0")[:-1], "before its first frame"),
        (gif(frame([], (0, 3))), "no pixels"),
        (gif(frame(INDICES, (3, 2)))[:-8], "cannot be decoded"),
        (gif(b"," + struct.pack("<4HB", 0, 0, 3, 2, 0) + b"\xff"), "no pixels"),
    ],
)
def test_damage_is_described(data: bytes, reason: str) -> None:
    with pytest.raises(MultigrainError, match=reason) as caught:
        decode(data)
    assert caught.value.kind is ErrorKind.IMAGE_UNREADABLE


@pytest.mark.parametrize("block", [b"", b"!\xfe\x02ab\0"])
def test_a_whole_file_without_a_frame_is_named(block: bytes) -> None:
    with pytest.raises(MultigrainError, match="a GIF without a frame") as caught:
        decode(gif(block))
    assert caught.value.kind is ErrorKind.IMAGE_FORMAT


@pytest.mark.parametrize(
    ("block", "what"),
    [
        (b"!\xfe\0" * 200_000, "100 extensions"),
        (b"!\xfe" + b"\1a" * 200_000 + b"\0", "20000 blocks"),
        (b"\0" * 200_000, "65536 bytes before its first frame"),
    ],
)
def test_a_file_of_very_many_blocks_is_refused(block: bytes, what: str) -> None:
    with pytest.raises(MultigrainError, match=f"more than {what}"):
        decode(gif(block, frame(INDICES, (3, 2))))


@pytest.mark.process
def test_a_sample_agrees_with_imagemagick(tmp_path: Path) -> None:
    files = [gif(clear(i), frame(INDICES, (3, 2))) for i in range(4)]
    for seed in range(3):
        image = noise(31, 17, seed).quantize(20 + 100 * seed)
        files += [encode(image, "GIF", interlace=i, transparency=seed) for i in (0, 1)]
    frames = [Image.new("P", (8, 8), i) for i in range(3)]
    files.append(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    for data in files:
        np.testing.assert_array_equal(decode(data), reference(data, "gif", tmp_path))
