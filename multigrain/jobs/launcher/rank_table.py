"""Ascend with a rank table: HCCL finds the peers in a file, and there is no scheduler."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.jobs.launcher.base import LaunchPlan, ProcessPlan, RankCommand, worker_log


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
