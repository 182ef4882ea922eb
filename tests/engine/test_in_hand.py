"""What the daemon can read of a dead engine's work."""

from __future__ import annotations

import os
import time

from multigrain.engine.inflight import InHand


def test_what_a_process_held_when_it_died_can_be_read() -> None:
    fd = InHand.allocate(4)
    reader = InHand(fd, 4)
    before = time.monotonic_ns()
    pid = os.fork()
    if pid == 0:
        hand = InHand(fd, 4)
        for slot in range(3):
            hand.take(slot, 10 + slot)
        hand.put_down(1)
        os._exit(0)
    os.close(fd)
    os.waitpid(pid, 0)
    held = reader.held()
    assert [h.item_id for h in held] == [10, 12]
    assert all(before <= h.since_ns <= time.monotonic_ns() for h in held)


def test_nothing_is_held_at_first() -> None:
    fd = InHand.allocate(3)
    hand = InHand(fd, 3)
    os.close(fd)
    assert hand.held() == []
