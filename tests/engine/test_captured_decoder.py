"""A decoder process that somebody has taken over through an image sends what it likes."""

from __future__ import annotations

import os
import socket
from typing import Any, cast

import pytest

from multigrain.engine import decoders
from multigrain.engine.decoder_process import MAX_MESSAGE, SIZE, Parameters
from multigrain.engine.decoders import (
    Budget,
    DecoderProcess,
    DecodeStoppedError,
    StopReason,
    Template,
)

SIDE = 8


class CapturedTemplate:
    """Starts processes of which there is only the end of the socket, with an answer in it."""

    parameters = Parameters(1000, 1000, 10_000, 2**28, 5.0, {SIDE: "{}"})

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._ends: list[socket.socket] = []
        self.ended = 0

    def start(self, channel: int, _memory: int, _max_memory: int, priority: str) -> int:
        end = socket.socket(fileno=os.dup(channel))
        end.sendall(self._answer)
        self._ends.append(end)
        return os.getpid()

    def end(self, _pid: int) -> int:
        self.ended += 1
        for end in self._ends:
            end.close()
        return -9


@pytest.mark.parametrize(
    "answer",
    [
        SIZE.pack(100),
        SIZE.pack(100) + b"half",
        SIZE.pack(1)[:2],
        SIZE.pack(MAX_MESSAGE + 1),
        SIZE.pack(2**32 - 1),
        SIZE.pack(2) + b"\xa1\xff",
        SIZE.pack(5) + b"\xdd\xff\xff\xff\xff",
        SIZE.pack(1000) + b"\x91" * 1000,
    ],
    ids=lambda answer: answer[:8].hex(),
)
def test_an_answer_that_is_none_ends_the_process_and_not_the_engine(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "_ANSWER_SECONDS", 0.2)
    template: Any = CapturedTemplate(answer)
    process = DecoderProcess(cast(Template, template), 1 << 20)
    with pytest.raises(DecodeStoppedError) as stopped:
        process.decode(b"image", SIDE, Budget(5.0, 5.0), lambda: True)
    assert stopped.value.reason is StopReason.CRASH
    assert template.ended == 1
