"""Process priorities, tested in a process of their own: pytest must keep its priority."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

_PROGRAM = textwrap.dedent(
    """
    import os, threading
    from multigrain import processes

    def standing(tid):
        return os.getpriority(os.PRIO_PROCESS, tid), os.sched_getscheduler(tid)

    if {restricted}:
        processes._can_raise_to = lambda nice: False
    before = standing(0)
    started, end = threading.Event(), threading.Event()
    with processes.low_priority():
        thread = threading.Thread(target=lambda: (started.set(), end.wait()))
        thread.start()
        started.wait()
        inside = standing(0)
        assert inside != before, inside
        assert standing(thread.native_id) == inside
        if {restricted}:
            assert inside == (before[0], os.SCHED_BATCH)
    assert standing(0) == before
    assert standing(thread.native_id) == before
    end.set()
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
@pytest.mark.parametrize("restricted", [False, True])
def test_low_priority_covers_new_threads_and_is_restored_afterwards(
    restricted: bool,
) -> None:
    program = _PROGRAM.format(restricted=restricted)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
