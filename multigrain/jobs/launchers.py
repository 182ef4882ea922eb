"""Launchers of workers: they return a plan of processes, which the runner starts."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ValidationError

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.files import MAX_DOCUMENT_BYTES, Roots, read_bytes, read_tail
from multigrain.images.limits import read_limits
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.processes import python_command
from multigrain.specs.base import DeviceSpec

SET_DEVICE = {"cpu": "CPU", "gpu": "GPU", "ascend": "Ascend"}
"""Name of each target in ``mindspore.set_device``."""

COLLECTIVES = {"cpu": "mccl", "gpu": "nccl", "ascend": "hccl"}
"""Communication library of each target in ``mindspore.communication.init``."""

RANK_MODULE = "multigrain.jobs.rank"

HOST = "127.0.0.1"
"""Address of the scheduler."""

BIND_FAILED = re.compile(rb"Failed to init the tcp server")
"""Text in the scheduler's log (MindSpore 2.8.0) when another process has its port."""

_SCHEDULER_LOG_BYTES = 4 << 20  # searched for them


CLUSTER_VARIABLES = frozenset(
    {
        *("MS_ROLE", "MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_NODE_ID"),
        *("MS_TOPO_TIMEOUT", "MS_SIMULATION_LEVEL", "RANK_TABLE_FILE"),
        *("RANK_ID", "RANK_SIZE", "DEVICE_ID"),
    }
)
"""Variables by which MindSpore joins a cluster. Workers get them from the launcher only, not from
the environment of the daemon."""

COMPILE_CACHE_VARIABLE = "MULTIGRAIN_COMPILE_CACHE"
"""Tells training workers the folder of compiled graphs; set by the daemon. Without it, workers
keep none."""

COMPILE_CACHE_SIZE_VARIABLE = "MULTIGRAIN_COMPILE_CACHE_BYTES"
"""Tells training workers how many bytes that folder may have."""


@dataclass(frozen=True)
class RankCommand:
    """What every launcher starts for each rank: ``python -m multigrain.jobs.rank``.

    Attributes:
        folder: the job's.
        attempt: its number.
        world: number of workers.
        devices: target and threads are passed on.
    """

    folder: Path
    attempt: int
    world: int
    devices: DeviceSpec

    def arguments(self, *, clustered: bool) -> tuple[str, ...]:
        """Arguments of ``multigrain.jobs.rank``; ``clustered``: the worker joins a cluster."""
        arguments = [
            *("--folder", str(self.folder)),
            *("--attempt", str(self.attempt)),
            *("--world", str(self.world)),
            *("--target", self.devices.target),
            *("--threads", str(self.devices.threads_per_worker)),
        ]
        if clustered:
            arguments.append("--clustered")
        return tuple(arguments)

    def command(self, *, clustered: bool) -> tuple[str, ...]:
        """The interpreter and its arguments."""
        return python_command(RANK_MODULE, *self.arguments(clustered=clustered))


@dataclass(frozen=True)
class ProcessPlan:
    """One process to start: its command, log file and additional environment variables."""

    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def environment_in(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The whole environment: the inherited one without the variables of another cluster."""
        kept = {name: v for name, v in inherited.items() if name not in CLUSTER_VARIABLES}
        return {**kept, **self.environment}


@dataclass(frozen=True)
class LaunchPlan:
    """The processes that the runner starts, and the logs that all of the attempt's processes write.

    ``scheduler_log`` is None without a scheduler.
    """

    processes: tuple[ProcessPlan, ...]
    worker_logs: tuple[Path, ...]
    scheduler_log: Path | None = None

    def port_was_taken(self) -> bool:
        """Whether the scheduler failed because its port was in use."""
        if self.scheduler_log is None:
            return False
        try:
            text, _ = read_tail(self.scheduler_log, _SCHEDULER_LOG_BYTES)
        except OSError:  # it has not written anything
            return False
        return BIND_FAILED.search(text) is not None


class Launcher(Protocol):
    """Plans the processes of one attempt."""

    def plan(self, rank: RankCommand, logs: Path) -> LaunchPlan:
        """Returns the processes to start.

        Args:
            rank: what to start for each rank.
            logs: folder for the attempt's logs.

        Raises:
            MultigrainError: if the devices cannot be launched in this way.
        """
        ...


def worker_log(logs: Path, rank: int) -> Path:
    """A worker's log: the name is msrun's."""
    return logs / f"worker_{rank}.log"


class DirectLauncher:
    """Starts the workers as children of the runner, without a cluster: for a single worker."""

    def plan(self, rank: RankCommand, logs: Path) -> LaunchPlan:
        """See ``Launcher``."""
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


class ClusterLauncher:
    """Starts a scheduler and the workers on this host, as MindSpore's msrun does.

    msrun itself would be one more process that imports MindSpore, and notices only once a second
    that a worker has exited. The variables are those of "dynamic cluster startup" in MindSpore's
    documentation; the runner takes msrun's part.

    Args:
        pick_port: chooses the scheduler's port.
    """

    def __init__(self, pick_port: Callable[[], int] | None = None) -> None:
        self._pick_port = pick_port or free_port

    def plan(self, rank: RankCommand, logs: Path) -> LaunchPlan:
        """See ``Launcher``."""
        cluster = {
            "MS_WORKER_NUM": str(rank.world),
            "MS_SCHED_HOST": HOST,
            "MS_SCHED_PORT": str(self._pick_port()),
            "MS_TOPO_TIMEOUT": str(math.ceil(rank.devices.cluster_timeout_seconds)),
            "RANK_SIZE": str(rank.world),
        }
        command = rank.command(clustered=True)
        scheduler = ProcessPlan(
            command,
            logs / "scheduler.log",
            # Errors only: as a warning, it says every five seconds how many workers there are.
            {**cluster, "MS_ROLE": "MS_SCHED", "RANK_ID": "0", "GLOG_v": "3"},
        )
        worker_logs = tuple(worker_log(logs, i) for i in range(rank.world))
        workers = tuple(
            ProcessPlan(
                command,
                log,
                {
                    **cluster,
                    **{"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(i)},
                    **{"RANK_ID": str(i), "DEVICE_ID": str(i)},
                },
            )
            for i, log in enumerate(worker_logs)
        )
        return LaunchPlan((scheduler, *workers), worker_logs, scheduler.log)


def free_port() -> int:
    """A TCP port that is free now. Another process may bind it before it is used: see
    ``LaunchPlan.port_was_taken``."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class _Device(BaseModel):
    device_id: int
    rank_id: int


class _Server(BaseModel):
    device: list[_Device]


class RankTable(BaseModel):
    """The used parts of a RANK_TABLE_FILE, which has its numbers as strings."""

    server_list: list[_Server]

    @classmethod
    def load(cls, path: Path, roots: Roots = None) -> RankTable:
        """Reads the file.

        Args:
            path: the file.
            roots: folders that it must be in.

        Raises:
            MultigrainError: INVALID_FIELD, if it cannot be read or is not a rank table.
        """
        try:
            return cls.model_validate_json(
                read_bytes(path, max_bytes=MAX_DOCUMENT_BYTES, roots=roots)
            )
        except OSError as error:
            reason = str(error.strerror)
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise MultigrainError.field(
            "spec.devices.rank_table", f"{path.name} is not a readable rank table: {reason}"
        )


class RankTableLauncher:
    """Starts one worker for each Ascend device of this host, without a scheduler.

    HCCL finds the peers in the rank table: workers get RANK_TABLE_FILE, RANK_ID, RANK_SIZE and
    DEVICE_ID in their environment, and no MS_ROLE.
    """

    def plan(self, rank: RankCommand, logs: Path) -> LaunchPlan:
        path = Path(rank.devices.rank_table)
        limits = read_limits(JobFolder(rank.folder).image_limits)
        table = RankTable.load(path, limits.roots)
        if len(table.server_list) != 1:
            raise MultigrainError(
                ErrorKind.UNSUPPORTED,
                f"the rank table {path.name} has {len(table.server_list)} servers; this "
                "launcher supports one host",
            )
        devices = sorted(table.server_list[0].device, key=lambda device: device.rank_id)
        if [device.rank_id for device in devices] != list(range(rank.world)):
            raise MultigrainError.field(
                "spec.devices.rank_table",
                f"{path.name} has the ranks {[device.rank_id for device in devices]}, but "
                f"spec.devices.count needs 0 to {rank.world - 1}",
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


def world_of(request: JobRequest) -> int:
    """Number of workers; always 1 for an export, which cannot be divided."""
    return 1 if request.kind is JobKind.EXPORT else request.spec.devices.count


def choose_launcher(request: JobRequest) -> Launcher:
    """The launcher of a job: a single worker needs no cluster."""
    alone = world_of(request) == 1
    training = request.kind is JobKind.TRAINING
    if request.spec.devices.launcher == "rank-table" and (training or not alone):
        return RankTableLauncher()
    return DirectLauncher() if alone else ClusterLauncher()
