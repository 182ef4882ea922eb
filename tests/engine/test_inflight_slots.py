"""The daemon reads which images an engine was processing when it died."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import pytest

from multigrain.engine.decoder_process import Exchange
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


@pytest.mark.skipif(sys.platform != "linux", reason="seals are a part of Linux")
@pytest.mark.parametrize(
    "allocate",
    [lambda: InFlightSlots.allocate(4), lambda: Exchange.allocate(100, 100)],
    ids=["of the daemon", "of an engine"],
)
def test_a_captured_process_cannot_cut_off_memory_that_another_reads(
    allocate: Callable[[], int],
) -> None:
    """The kernel would end the other one (SIGBUS) at its next look."""
    fd = allocate()
    size = os.fstat(fd).st_size
    for changed in (0, 2 * size):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, changed)
    os.close(fd)
