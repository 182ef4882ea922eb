"""The daemon reads which images an engine was processing when it died."""

from __future__ import annotations

import os
import time

from multigrain.engine.protocol import InFlightSlots


def test_the_images_that_a_dead_process_was_working_on_can_be_read() -> None:
    fd = InFlightSlots.allocate(4)
    reader = InFlightSlots(fd, 4)
    before = time.monotonic_ns()
    pid = os.fork()
    if pid == 0:
        writer = InFlightSlots(fd, 4)
        for slot in range(3):
            writer.record(slot, 10 + slot)
        writer.clear(1)
        os._exit(0)
    os.close(fd)
    os.waitpid(pid, 0)
    images = reader.images()
    assert [image.item_id for image in images] == [10, 12]
    assert all(before <= image.since_ns <= time.monotonic_ns() for image in images)


def test_no_image_is_in_flight_at_first() -> None:
    fd = InFlightSlots.allocate(3)
    writer = InFlightSlots(fd, 3)
    os.close(fd)
    assert writer.images() == []
