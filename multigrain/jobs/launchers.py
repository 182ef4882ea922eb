"""What a launcher makes: a plan of processes, as a value that can be looked at before it runs."""

from __future__ import annotations

import math
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ValidationError

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.specs.base import DeviceSpec

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


# MERGED: One process, started by the runner itself: no cluster to form.


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


# MERGED: MindSpore's own launcher: a scheduler and N workers on this host.


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


# MERGED: Ascend with a rank table: HCCL finds the peers in a file, and there is no scheduler.


class _Device(BaseModel):
    device_id: int
    rank_id: int


class _Server(BaseModel):
    device: list[_Device]


class RankTable(BaseModel):
    """The parts that matter here of a RANK_TABLE_FILE, which writes its numbers as strings."""

    server_list: list[_Server]

    @classmethod
    def load(cls, path: Path) -> RankTable:
        """
        Raises:
            MultigrainError: INVALID_FIELD, if the file cannot be read or is no rank table.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            reason = str(error.strerror)
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise MultigrainError.field(
            "spec.devices.rank_table", f"{path.name} is not a readable rank table: {reason}"
        )


class RankTableLauncher:
    """Starts one process for each device of this host, as MindSpore's rank-table way wants it:
    RANK_TABLE_FILE, RANK_ID, RANK_SIZE and DEVICE_ID in the environment, and no MS_ROLE."""

    def plan(self, rank: RankCommand, logs: Path) -> LaunchPlan:
        path = Path(rank.devices.rank_table)
        table = RankTable.load(path)
        if len(table.server_list) != 1:
            raise MultigrainError(
                ErrorKind.UNSUPPORTED,
                f"the rank table {path.name} names {len(table.server_list)} servers; this "
                "launcher starts the workers of one host",
            )
        devices = sorted(table.server_list[0].device, key=lambda device: device.rank_id)
        if [device.rank_id for device in devices] != list(range(rank.world)):
            raise MultigrainError.field(
                "spec.devices.rank_table",
                f"{path.name} names the ranks {[device.rank_id for device in devices]}, but "
                f"spec.devices.count asks for 0 to {rank.world - 1}",
            )
        worker_logs = tuple(worker_log(logs, i) for i in range(rank.world))
        processes = tuple(
            ProcessPlan(
                command=rank.command(clustered=True),
                log=log,
                environment={
                    "RANK_TABLE_FILE": str(path),
                    "RANK_ID": str(device.rank_id),
                    "RANK_SIZE": str(rank.world),
                    "DEVICE_ID": str(device.device_id),
                },
            )
            for device, log in zip(devices, worker_logs, strict=True)
        )
        return LaunchPlan(processes, worker_logs)


# MERGED: Which launcher a job uses.


def world_of(request: JobRequest) -> int:
    """Number of workers. An export has nothing to share: one."""
    return 1 if request.kind is JobKind.EXPORT else request.spec.devices.count


def choose_launcher(request: JobRequest) -> Launcher:
    """Training always has a cluster, of one worker too, so that there is one way of training;
    evaluation and export have one when there is more than one worker."""
    if request.kind is not JobKind.TRAINING and world_of(request) == 1:
        return DirectLauncher()
    if request.spec.devices.launcher == "rank-table":
        return RankTableLauncher()
    return MsrunLauncher()
