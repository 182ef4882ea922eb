"""The runners of a daemon in the test's process."""

from __future__ import annotations

import asyncio

from multigrain_server.app import App


def runner_pids(app: App) -> list[int]:
    """Processes that run jobs now."""
    runners = [active.runner for active in app._supervisor.active.values()]
    return [r.pid for r in runners if r is not None and r.alive() and r.pid is not None]


async def until_idle(app: App) -> None:
    """Returns when every job has ended and its processes have exited."""
    while app._supervisor.active:  # noqa: ASYNC110 - the supervisor polls as well
        await asyncio.sleep(app.config.jobs.poll_seconds)
