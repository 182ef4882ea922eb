"""Loading and warming up behind what other engines are serving."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_NICE = 10
_CAP_SYS_NICE = 23


@contextlib.contextmanager
def background() -> Iterator[None]:
    """Lets every other process go first while the block runs, where that can be taken back.

    A process may always lower its priority, but raise it again only with CAP_SYS_NICE or a
    large enough RLIMIT_NICE. Without them it is only kept from interrupting others as they wake
    up (SCHED_BATCH), which needs no privilege. On Linux both belong to threads, and new threads
    inherit them: the pools of a runtime too, so all are put back at the end.
    """
    if sys.platform != "linux":
        yield
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if _may_raise_to(nice):
        _for_all_threads(nice + _NICE, os.SCHED_OTHER)
    else:
        _for_all_threads(nice, os.SCHED_BATCH)
    try:
        yield
    finally:
        _for_all_threads(nice, os.SCHED_OTHER)


def _may_raise_to(nice: int) -> bool:
    if sys.platform != "linux":
        return False
    import resource

    # The limit says how far up: 20 - nice (setrlimit(2)).
    if resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20 - nice:
        return True
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_NICE & 1)
    return False


def _for_all_threads(nice: int, policy: int) -> None:
    if sys.platform != "linux":
        return
    for name in os.listdir("/proc/self/task"):
        # Some may have ended, and where a container forbids it, nothing is lost.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(int(name), policy, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, int(name), nice)
