"""MindSpore's own launcher: a scheduler and N workers on this host."""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.jobs.launcher.base import LaunchPlan, ProcessPlan, RankCommand, worker_log

HOST = "127.0.0.1"

NO_TAIL = "-2"
"""For ``--tail_worker_log``: no rank has this number, so that msrun starts no ``tail -f``."""


class MsrunLauncher:
    """Starts msrun, which starts the scheduler and the workers, each as a guard of ours.

    msrun starts workers with the command ``python``, whatever interpreter it runs in itself;
    the folder of our interpreter is put first on PATH.

    Args:
        pick_port: chooses the scheduler's port.
    """

    def __init__(self, pick_port: Callable[[], int] | None = None) -> None:
        self._pick_port = pick_port or free_port

    def plan(self, rank: RankCommand, logs: Path) -> LaunchPlan:
        python = Path(sys.executable)
        if not (python.parent / "python").exists():
            raise MultigrainError(
                ErrorKind.UNSUPPORTED,
                "msrun starts workers with the command 'python', which is not beside this "
                "interpreter; install multigrain in a virtual environment",
            )
        command = (
            str(python),
            *("-m", "mindspore.parallel.cluster.run"),
            f"--worker_num={rank.world}",
            f"--local_worker_num={rank.world}",
            f"--master_addr={HOST}",
            f"--master_port={self._pick_port()}",
            f"--log_dir={logs}",
            "--join=True",
            f"--cluster_time_out={math.ceil(rank.devices.cluster_timeout_seconds)}",
            f"--tail_worker_log={NO_TAIL}",
            "python",
            *rank.arguments(clustered=True),
        )
        path = os.pathsep.join((str(python.parent), os.environ.get("PATH", os.defpath)))
        return LaunchPlan(
            processes=(ProcessPlan(command, logs / "msrun.log", {"PATH": path}),),
            worker_logs=tuple(worker_log(logs, i) for i in range(rank.world)),
            scheduler_log=logs / "scheduler.log",
        )


def free_port() -> int:
    """A TCP port that nobody listens on now. Somebody else may take it before it is used:
    see ``LaunchPlan.port_was_taken``."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
