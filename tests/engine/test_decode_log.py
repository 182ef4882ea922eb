"""How often the engine says that decoding was ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from multigrain.engine.decode_lanes import DecodeLanes
from multigrain.engine.decoders import DecodeStoppedError, StopReason
from multigrain.engine.lanes import Lane

LEFT = 500


class NeverWanted:
    """A decoder whose images nobody waits for."""

    def decode(self, *_: object) -> Any:
        raise DecodeStoppedError(StopReason.UNWANTED, "is not needed any more")


class Images:
    """A batcher with images of callers who leave."""

    def __init__(self) -> None:
        self.failed = 0

    def next_to_decode(self, _: Lane) -> Any:
        if self.failed == LEFT:
            return None
        request = SimpleNamespace(id=self.failed, resolution=8, tensor=False, decode_seconds=0.1)
        return SimpleNamespace(
            request=request, data=b"", decode_ns=0, attempts=0, cancelled=True, lane=Lane.ORDINARY
        )

    def decode_failed(self, _: object) -> None:
        self.failed += 1


def test_callers_who_leave_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    images, dropped = Images(), []
    lanes: Any = DecodeLanes(
        images,  # type: ignore[arg-type]
        {lane: [] for lane in Lane},
        30.0,
        lambda *_: None,
        lambda item, _: dropped.append(item.request.id),
    )
    lanes._run(Lane.ORDINARY, NeverWanted())
    assert dropped == list(range(LEFT))  # each is answered
    assert 1 <= caplog.text.count("decoding of image") <= LEFT // 10
