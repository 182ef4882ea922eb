"""Memory that was freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys

# Blocks that the C library takes from its heap, and one above them that keeps the heap's end.
PROGRAM = """
import psutil
from multigrain import heap

blocks = [bytes(b"x") * 100_000 for _ in range(2_000)]
last = bytes(b"y") * 100_000
blocks.clear()
held = psutil.Process().memory_info().rss
heap.trim()
print(held - psutil.Process().memory_info().rss)
"""


def test_what_was_freed_below_a_block_in_use_goes_back_to_the_system() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 100e6
