"""How long to fuzz, and from which seed."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

#: Of every part; 0 = a fixed number of rounds with a fixed seed, as in the tests of each day.
SECONDS = float(os.environ.get("MULTIGRAIN_FUZZ_SECONDS", "0"))


def seed() -> int:
    """Fixed, or another one each time and printed, to be given back in MULTIGRAIN_FUZZ_SEED."""
    given = os.environ.get("MULTIGRAIN_FUZZ_SEED")
    chosen = int(given) if given else random.SystemRandom().randrange(2**32) if SECONDS else 1
    print(f"MULTIGRAIN_FUZZ_SEED={chosen}")
    return chosen


def rounds(usual: int) -> Iterator[int]:
    """Numbers of rounds: ``usual`` of them, or as many as the time allows."""
    end = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < end if SECONDS else number < usual:
        yield number
        number += 1
