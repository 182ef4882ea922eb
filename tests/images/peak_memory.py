"""Prints what decoding a file takes: ``python -m tests.images.peak_memory FILE...``

A line for each file: the bytes by which memory grew at its peak, the kind of the error or
"decoded", and the seconds of processor time. Each file is decoded in a process of its own, because
a peak never falls.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

from multigrain.errors import MultigrainError
from multigrain.images.decode import decode_image


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(path: Path) -> None:
    data = path.read_bytes()
    before, start = peak(), time.process_time()
    try:
        decode_image(data)
        outcome = "decoded"
    except MultigrainError as error:
        outcome = error.kind.name
    print(peak() - before, outcome, time.process_time() - start, flush=True)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        child = os.fork()
        if not child:
            measure(Path(argument))
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{argument}: the process that decoded it ended by an error")
