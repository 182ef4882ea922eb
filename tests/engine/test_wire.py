"""Frames, whole and in pieces, and what is refused."""

from __future__ import annotations

import json
import struct

import pytest

from multigrain.engine.protocol import (
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
    Frame(Submit(2**62, 2**61, 224, 2**60, VectorWants(whiten=True), 1000, True, True)),
    Frame(Cancel(id=1)),
    Frame(Result(id=2**40, message='ä\n"', scale=0.25), b"x"),
    Frame(Result(1, 2, "no", "batch", 3, 4, 5, 6, True, 7, 0.5, 8, 9)),
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


def raw(header: bytes) -> bytes:
    return struct.pack("<II", len(header), 0) + header


def frame_of(header: object) -> bytes:
    return raw(json.dumps(header).encode())


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
        frame_of({"type": "submit", "id": 1}),
        raw(Submit(id=1).pack()[:-1]),
        raw(Submit(id=1).pack() + b"x"),
        raw(Submit.FORM.pack(b"S", 1, 0, 0, 0, 0, 13, False, False)),
        raw(Result(id=1).pack()[:-1]),
        raw(Result(id=1).pack() + b"\xff"),
        raw(Result(id=1, kind=1_000_000).pack()),
        raw(Result.FORM.pack(b"R", 1, 0, 3, 0, 0, 0, 0, False, 0, 0.0, 0, 0)),
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


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("whiten", [False, True])
def test_every_way_to_want_a_vector_arrives(normalize: bool, dtype: str, whiten: bool) -> None:
    wants = VectorWants(normalize=normalize, dtype=dtype, whiten=whiten)
    assert Submit.unpack(Submit(id=1, vector=wants).pack()).vector == wants
