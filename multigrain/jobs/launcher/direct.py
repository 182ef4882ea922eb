"""One process, started by the runner itself: no cluster to form."""

from __future__ import annotations

from pathlib import Path

from multigrain.jobs.launcher.base import LaunchPlan, ProcessPlan, RankCommand, worker_log


class DirectLauncher:
    """Starts every rank itself. They share no cluster: meant for a world of one."""

    def plan(self, rank: RankCommand, logs: Path) -> LaunchPlan:
        worker_logs = tuple(worker_log(logs, i) for i in range(rank.world))
        processes = tuple(
            ProcessPlan(
                command=rank.command(clustered=False),
                log=log,
                environment={
                    "RANK_ID": str(i),
                    "RANK_SIZE": str(rank.world),
                    "DEVICE_ID": str(i),
                },
            )
            for i, log in enumerate(worker_logs)
        )
        return LaunchPlan(processes, worker_logs)
