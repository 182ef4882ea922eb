"""Whether the kernel kills for want of memory."""

from __future__ import annotations

from pathlib import Path


def oom_kills(counters: Path = Path("/proc/vmstat")) -> int:
    """Processes that the kernel has killed for want of memory since the machine started, in
    containers that reached a limit of their own too. 0 where it does not count them.

    Args:
        counters: the kernel's, a name and a number a line; it has ``oom_kill`` since Linux 4.13.
    """
    try:
        lines = counters.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
