"""A daemon is told to end while many callers keep it busy."""

from __future__ import annotations

import asyncio
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.e2e.daemon import Daemon, wait_for_no_processes
from tests.faults.serving import Seen, amount, callers, serving_daemon, until

CALLERS = 16


async def unready(daemon: Daemon) -> bool:
    """What a load balancer hears."""

    def ask() -> bool:
        try:
            urllib.request.urlopen(f"http://{daemon.http_address}/readyz", timeout=30).close()
        except urllib.error.HTTPError as error:
            return error.code == 503
        return False

    return await asyncio.to_thread(ask)


async def test_a_daemon_that_is_told_to_end_under_full_load_loses_no_call(tmp_path: Path) -> None:
    calls = amount(500, 10_000)
    daemon = serving_daemon(tmp_path, flags=["--shutdown-keep-serving-seconds=1"])
    try:
        seen = Seen()
        address = daemon.address
        async with callers(address, "tiny", CALLERS, seen, until_refused=True):
            await until(lambda: seen.answered >= calls)
            daemon.process.send_signal(signal.SIGTERM)
            await until(lambda: unready(daemon))
            unready_at, before = time.monotonic(), seen.answered
        assert await asyncio.to_thread(daemon.process.wait, 60) == 0
        # First it looks unready, then it serves on, and only then it refuses.
        assert unready_at < seen.refused_at
        assert seen.answered > before
        # Who is not answered hears a refusal, or that nobody listens: nothing that was begun
        # is lost, and nobody is told that he himself gave up.
        assert set(seen.codes) == {"OK", "UNAVAILABLE"}
        assert all("shutting down" in r or "failed to connect" in r for r in seen.reasons), seen
        assert seen.wrong == 0
        wait_for_no_processes(daemon.data_dir, 60)
    finally:
        daemon.end()
