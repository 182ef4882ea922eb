"""Encoding and parsing of frames, and what is refused."""

from __future__ import annotations

import struct

import msgspec
import pytest

from multigrain.engine.protocol import (
    MAX_HEADER,
    Cancel,
    EmbeddingOptions,
    Frame,
    FrameParser,
    LoadFailed,
    Ready,
    Result,
    Submit,
    WireError,
    encode,
)
from multigrain.errors import ErrorKind

FRAMES = [
    Frame(Submit(id=1, vector=EmbeddingOptions(dtype="int8"), top_k=3), b"\x00\xff" * 100),
    Frame(Submit(2**62, 2**61, 224, 2**60, EmbeddingOptions(whiten=True), 1000, True, True)),
    Frame(Cancel(id=1)),
    Frame(Ready("openvino", "auto", (224, 448), 2048, 1000, 32, 1.5, "bf16", 99.5, 16)),
    Frame(LoadFailed(ErrorKind.CHECKPOINT, "damaged")),
    Frame(Result(id=2**40, message='ä\n"', scale=0.25), b"x"),
    Frame(Result(1, ErrorKind.DEADLINE, "no", "batch", 3, 4, 5, 6, True, 7, 0.5, 8, 9)),
]
BYTES = b"".join(encode(f.message, len(f.payload)) + f.payload for f in FRAMES)


@pytest.mark.parametrize("step", [1, 7, 100, 10_000])
def test_frames_are_parsed_from_pieces_of_any_size(step: int) -> None:
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
    return raw(msgspec.msgpack.encode(header))


def header_of(message: Submit | Result) -> bytes:
    return encode(message)[8:]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<II", 0, 0),
        struct.pack("<II", MAX_HEADER + 1, 0),
        struct.pack("<II", 2, 1001),
        struct.pack("<II", 2, 0) + b"\xff\xff",
        frame_of([]),
        frame_of({"type": "Cancel", "id": 1}),
        frame_of(["Exec", 1]),
        frame_of(["Submit"]),
        frame_of(["Submit", "one"]),
        frame_of(["Cancel", 1, 2]),
        frame_of(["Submit", 1, 0, 0, 0, [True, "fp64", False]]),
        frame_of(["Submit", 1, 0, -1]),
        frame_of(["Submit", 1, 0, 0, 0, None, -1]),
        frame_of(["Submit", 1, 0, 0, 0, None, 0, 2]),
        frame_of(["Result", 1, 1_000_000]),
        frame_of(["Result", 1, None, "", "nowhere"]),
        frame_of(["Result", 1, None, "", "", 0, 0, 0, 0, False, -1]),
        raw(header_of(Submit(id=1))[:-1]),
        raw(header_of(Submit(id=1)) + b"x"),
        raw(header_of(Result(id=1))[:-1]),
        raw(header_of(Result(id=1)) + b"\xff"),
    ],
)
def test_invalid_messages_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        list(FrameParser(1000).feed(data))


def test_text_that_is_not_utf8_is_refused() -> None:
    header = msgspec.msgpack.encode(["Result", 1, None, "x"])
    with pytest.raises(WireError):
        list(FrameParser(1000).feed(raw(header.replace(b"\xa1x", b"\xa1\xff"))))


def test_a_frame_above_the_limit_is_refused_before_it_is_received() -> None:
    parser = FrameParser(10)
    with pytest.raises(WireError, match="11 bytes"):
        list(parser.feed(struct.pack("<II", 30, 11)))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("whiten", [False, True])
def test_all_embedding_options_arrive(normalize: bool, dtype: str, whiten: bool) -> None:
    options = EmbeddingOptions(normalize=normalize, dtype=dtype, whiten=whiten)
    (frame,) = FrameParser(0).feed(encode(Submit(id=1, vector=options)))
    assert frame.message == Submit(id=1, vector=options)
