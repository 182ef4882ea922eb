"""Frames, whole and in pieces, and what is refused."""

from __future__ import annotations

import json
import struct

import pytest

from multigrain.engine.wire import (
    MAX_HEADER,
    Cancel,
    Frame,
    FrameParser,
    Result,
    Submit,
    VectorWants,
    WireError,
    encode,
)

FRAMES = [
    Frame(Submit(id=1, vector=VectorWants(dtype="int8"), top_k=3), b"\x00\xff" * 100),
    Frame(Cancel(id=1)),
    Frame(Result(id=2**40, message='ä\n"', scale=0.25), b"x"),
]
BYTES = b"".join(encode(f.message, len(f.payload)) + f.payload for f in FRAMES)


@pytest.mark.parametrize("step", [1, 7, 100, 10_000])
def test_frames_come_out_as_they_went_in_whatever_the_pieces(step: int) -> None:
    parser = FrameParser(1000)
    got = [
        frame
        for start in range(0, len(BYTES), step)
        for frame in parser.feed(BYTES[start : start + step])
    ]
    assert got == FRAMES


def frame_of(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<II", len(text), 0) + text


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<II", 0, 0),
        struct.pack("<II", MAX_HEADER + 1, 0),
        struct.pack("<II", 2, 1001),
        struct.pack("<II", 2, 0) + b"\xff\xff",
        frame_of([]),
        frame_of({"type": "exec", "id": 1}),
        frame_of({"type": "submit"}),
        frame_of({"type": "submit", "id": 1, "vector": {"dtype": "fp64"}}),
        frame_of({"type": "cancel", "id": 1, "extra": 1}),
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        list(FrameParser(1000).feed(data))


def test_a_frame_too_large_is_refused_before_it_has_arrived() -> None:
    parser = FrameParser(10)
    with pytest.raises(WireError, match="11 bytes"):
        list(parser.feed(struct.pack("<II", 30, 11)))
