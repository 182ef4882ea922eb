"""The runner, whose workers call a function of a test in place of a training.

``python -m tests.jobs.light_runner --work MODULE:FUNCTION FOLDER`` starts the workers without
MindSpore and without a cluster. The environment may name a port that the runner tries first for the
scheduler (TEST_FIRST_PORT).
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from multigrain.jobs import runner
from multigrain.jobs.job_request import JobRequest
from multigrain.jobs.launchers import (
    ClusterLauncher,
    DirectLauncher,
    Launcher,
    LaunchPlan,
    ProcessPlan,
    RankCommand,
    choose_launcher,
    free_port,
)

Cluster = Literal["none", "scheduler", "mindspore"]
"""Workers without a cluster; with a scheduler but without MindSpore; as in the product."""


@dataclass(frozen=True)
class LightLauncher:
    """Plans the same processes, whose workers are ``tests.jobs.light_rank``."""

    launcher: Launcher
    work: str
    mindspore: bool

    def plan(self, rank: RankCommand, logs: Path) -> LaunchPlan:
        plan = self.launcher.plan(rank, logs)
        return replace(plan, processes=tuple(self._light(process) for process in plan.processes))

    def _light(self, process: ProcessPlan) -> ProcessPlan:
        at = process.command.index("multigrain.jobs.rank")
        light = ("tests.jobs.light_rank", self.work, "mindspore" if self.mindspore else "bare")
        return replace(process, command=(*process.command[:at], *light, *process.command[at + 1 :]))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--cluster", default="none", choices=["none", "scheduler", "mindspore"])
    options, arguments = parser.parse_known_args()
    ports = [int(port) for port in os.environ.get("TEST_FIRST_PORT", "").split()]

    def choose(request: JobRequest) -> Launcher:
        launcher = DirectLauncher() if options.cluster == "none" else choose_launcher(request)
        if options.cluster == "scheduler" or isinstance(launcher, ClusterLauncher):
            launcher = ClusterLauncher(lambda: ports.pop() if ports else free_port())
        return LightLauncher(launcher, options.work, mindspore=options.cluster == "mindspore")

    return runner.main(arguments, choose)


if __name__ == "__main__":
    sys.exit(main())
