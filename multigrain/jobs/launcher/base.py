"""What a launcher makes: a plan of processes, as a value that can be looked at before it runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from multigrain.spec.base import DeviceSpec

SET_DEVICE = {"cpu": "CPU", "gpu": "GPU", "ascend": "Ascend"}
"""Name of each target in ``mindspore.set_device``."""

COLLECTIVES = {"cpu": "mccl", "gpu": "nccl", "ascend": "hccl"}
"""Library of each target in ``mindspore.communication.init``."""

BIND_FAILED = re.compile(rb"Address already in use|Failed to call bind")
"""In the scheduler's log (MindSpore 2.8.0) when another process has taken its port."""


CLUSTER_VARIABLES = frozenset(
    {
        *("MS_ROLE", "MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_NODE_ID"),
        *("MS_TOPO_TIMEOUT", "MS_SIMULATION_LEVEL", "RANK_TABLE_FILE"),
        *("RANK_ID", "RANK_SIZE", "DEVICE_ID"),
    }
)
"""Variables that tell MindSpore which cluster it is in: only a launcher may set them, whatever
the shell had that started the daemon."""


@dataclass(frozen=True)
class RankCommand:
    """What every launcher starts for each rank: ``python -m multigrain.jobs.rank``.

    ``work`` ("module:function") and ``bare`` (MindSpore is not set up) are for tests.
    """

    folder: Path
    attempt: int
    world: int
    devices: DeviceSpec
    work: str = ""
    bare: bool = False

    def arguments(self, *, clustered: bool) -> tuple[str, ...]:
        """The arguments of the Python interpreter; ``clustered``: there are peers to join."""
        arguments = [
            *("-m", "multigrain.jobs.rank"),
            *("--folder", str(self.folder)),
            *("--attempt", str(self.attempt)),
            *("--world", str(self.world)),
            *("--target", self.devices.target),
            *("--threads", str(self.devices.threads_per_worker)),
        ]
        if clustered:
            arguments.append("--clustered")
        if self.work:
            arguments += ["--work-function", self.work]
        if self.bare:
            arguments.append("--bare")
        return tuple(arguments)

    def command(self, *, clustered: bool) -> tuple[str, ...]:
        return (sys.executable, *self.arguments(clustered=clustered))


@dataclass(frozen=True)
class ProcessPlan:
    """One process to start: its command, what its environment adds, and where its output goes."""

    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def environment_in(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The whole environment: the inherited one, less what would name another cluster."""
        kept = {name: v for name, v in inherited.items() if name not in CLUSTER_VARIABLES}
        return {**kept, **self.environment}


@dataclass(frozen=True)
class LaunchPlan:
    """The processes that the runner starts itself, and the logs that they and theirs write.

    ``scheduler_log`` is None where there is no scheduler.
    """

    processes: tuple[ProcessPlan, ...]
    worker_logs: tuple[Path, ...]
    scheduler_log: Path | None = None

    def port_was_taken(self) -> bool:
        """Whether the scheduler found its port in use, so that another one is worth a try."""
        if self.scheduler_log is None or not self.scheduler_log.exists():
            return False
        return BIND_FAILED.search(self.scheduler_log.read_bytes()) is not None


class Launcher(Protocol):
    """Plans the processes of one attempt."""

    def plan(self, rank: RankCommand, logs: Path) -> LaunchPlan:
        """
        Args:
            rank: what to start for each rank.
            logs: folder for the attempt's logs.

        Raises:
            MultigrainError: if the devices cannot be launched in this way.
        """
        ...


def worker_log(logs: Path, rank: int) -> Path:
    """The name that msrun gives a worker's log; every launcher uses it."""
    return logs / f"worker_{rank}.log"
