"""A decoder process that somebody has taken over through an image sends what it likes."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
from typing import Any, cast

import msgspec
import pytest

from multigrain.engine import decoders
from multigrain.engine.decoder_process import MAX_MESSAGE, SIZE, Parameters, Refused
from multigrain.engine.decoders import (
    Budget,
    DecoderProcess,
    DecodeStoppedError,
    StopReason,
    Template,
)
from multigrain.errors import ErrorKind, MultigrainError

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


@pytest.mark.parametrize(
    ("runnable", "reason"), [(True, StopReason.BUSY), (False, StopReason.ASLEEP)]
)
def test_a_process_that_waits_for_a_cpu_only_does_not_hang(
    runnable: bool, reason: StopReason, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the slow lane may get no CPU time for longer than a process may sleep."""
    monkeypatch.setattr(decoders, "_ASLEEP_SECONDS", 0.2)
    monkeypatch.setattr(decoders, "cpu_seconds", lambda _pid: 0.0)
    if not runnable:
        monkeypatch.setattr(decoders, "wants_cpu", lambda _pid: False)
    # It has the process id of this test, which runs whenever it looks at itself.
    template: Any = CapturedTemplate(b"")
    process = DecoderProcess(cast(Template, template), 1 << 20, "idle")
    with pytest.raises(DecodeStoppedError) as stopped:
        process.decode(b"image", SIDE, Budget(5.0, 1.0), lambda: True)
    assert stopped.value.reason is reason


def test_only_a_process_that_runs_wants_a_cpu() -> None:
    assert decoders.wants_cpu(os.getpid())
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        try:
            until = time.monotonic() + 30
            while decoders.wants_cpu(sleeping.pid):
                assert time.monotonic() < until
                time.sleep(0.01)
        finally:
            sleeping.kill()
    assert not decoders.wants_cpu(sleeping.pid)


@pytest.mark.parametrize("out_of_memory", [False, True])
def test_a_refused_image_is_freed_without_the_garbage_collector(out_of_memory: bool) -> None:
    refused = Refused(ErrorKind.IMAGE_UNREADABLE, "no image", out_of_memory, exhausted=False)
    body = msgspec.msgpack.encode(refused)
    template: Any = CapturedTemplate(SIZE.pack(len(body)) + body)
    process = DecoderProcess(cast(Template, template), 1 << 20)
    data = os.urandom(1000)
    references = sys.getrefcount(data)
    gc.disable()
    try:
        try:
            process.decode(data, SIDE, Budget(5.0, 5.0), lambda: True)
        except (MultigrainError, DecodeStoppedError) as error:
            answer = type(error)
        assert answer is (DecodeStoppedError if out_of_memory else MultigrainError)
        assert sys.getrefcount(data) == references
    finally:
        gc.enable()
        process.stop()
