"""Plans of launchers, including those that cannot run on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.jobs.launchers import (
    COLLECTIVES,
    SET_DEVICE,
    ClusterLauncher,
    DirectLauncher,
    RankCommand,
    RankTableLauncher,
    choose_launcher,
    free_port,
    world_of,
)
from multigrain.jobs.rank import parser
from multigrain.processes import python_command
from multigrain.specs.base import DeviceSpec
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.specs.export import ExportSpec
from multigrain.specs.training import TrainingSpec

LOGS = Path("/data/jobs/j/workers/attempt-2")


def command(**devices: object) -> RankCommand:
    spec = DeviceSpec.model_validate(devices)
    return RankCommand(Path("/data/jobs/j"), attempt=2, world=spec.count, devices=spec)


def request(kind: JobKind, **devices: object) -> JobRequest:
    spec = DeviceSpec.model_validate(devices)
    return JobRequest(
        job_id="j",
        kind=kind,
        create_time="",
        training=TrainingSpec(devices=spec) if kind is JobKind.TRAINING else None,
        evaluation=EvaluationSpec(devices=spec) if kind is JobKind.EVALUATION else None,
        export=ExportSpec(devices=spec) if kind is JobKind.EXPORT else None,
    )


RANK_ARGUMENTS = [
    *("-m", "multigrain.jobs.rank"),
    *("--folder", "/data/jobs/j", "--attempt", "2"),
    *("--world", "2", "--target", "cpu", "--threads", "3"),
]


def test_a_cluster_has_a_scheduler_and_the_variables_of_msrun() -> None:
    rank = command(count=2, threads_per_worker=3, cluster_timeout_seconds=90.5)
    plan = ClusterLauncher(lambda: 12345).plan(rank, LOGS)
    scheduler, *workers = plan.processes
    expected = [*python_command("multigrain.jobs.rank"), *RANK_ARGUMENTS[2:], "--clustered"]
    assert all(list(process.command) == expected for process in plan.processes)
    common = {
        "MS_WORKER_NUM": "2",
        "MS_SCHED_HOST": "127.0.0.1",
        "MS_SCHED_PORT": "12345",
        "MS_TOPO_TIMEOUT": "91",
        "RANK_SIZE": "2",
    }
    # Errors only: warnings would come every five seconds for as long as the job runs.
    own = {"MS_ROLE": "MS_SCHED", "RANK_ID": "0", "GLOG_v": "3"}
    assert scheduler.environment == common | own
    for number, worker in enumerate(workers):
        assert worker.environment == common | {
            "MS_ROLE": "MS_WORKER",
            "MS_NODE_ID": str(number),
            "RANK_ID": str(number),
            "DEVICE_ID": str(number),
        }
    assert plan.worker_logs == (LOGS / "worker_0.log", LOGS / "worker_1.log")
    assert [process.log for process in workers] == list(plan.worker_logs)
    assert plan.scheduler_log == scheduler.log == LOGS / "scheduler.log"


@pytest.mark.parametrize(
    ("target", "device", "collectives"),
    [("cpu", "CPU", "mccl"), ("gpu", "GPU", "nccl"), ("ascend", "Ascend", "hccl")],
)
def test_every_target_has_a_device_and_a_communication_library(
    target: str, device: str, collectives: str
) -> None:
    process, *_ = ClusterLauncher(lambda: 1).plan(command(target=target, count=8), LOGS).processes
    arguments = process.command[process.command.index("multigrain.jobs.rank") + 1 :]
    options = parser().parse_args(arguments)
    assert options.target == target
    assert options.clustered
    assert (SET_DEVICE[options.target], COLLECTIVES[options.target]) == (device, collectives)


def test_a_direct_worker_joins_no_cluster() -> None:
    rank = command(count=1, threads_per_worker=3)
    plan = DirectLauncher().plan(rank, LOGS)
    (process,) = plan.processes
    assert process.command[:4] == python_command("multigrain.jobs.rank")
    assert "--clustered" not in process.command
    assert process.environment == {"RANK_ID": "0", "RANK_SIZE": "1", "DEVICE_ID": "0"}
    assert process.log == LOGS / "worker_0.log"
    assert plan.scheduler_log is None


def write_table(path: Path, *servers: dict[str, str]) -> str:
    """A rank table with ``{rank_id: device_id}`` of each server."""
    body = {
        "version": "1.0",
        "server_count": str(len(servers)),
        "server_list": [
            {
                "server_id": f"10.0.0.{i}",
                "device": [
                    {"device_id": device, "device_ip": "192.168.1.1", "rank_id": rank}
                    for rank, device in server.items()
                ],
                "host_nic_ip": "reserve",
            }
            for i, server in enumerate(servers)
        ],
        "status": "completed",
    }
    path.write_text(json.dumps(body))
    return str(path)


def test_a_rank_table_gives_every_rank_its_device(tmp_path: Path) -> None:
    table = write_table(tmp_path / "rt.json", {"1": "6", "0": "4"})
    rank = command(target="ascend", count=2, launcher="rank-table", rank_table=table)
    plan = RankTableLauncher().plan(rank, LOGS)
    assert [dict(process.environment) for process in plan.processes] == [
        {"RANK_TABLE_FILE": table, "RANK_ID": "0", "RANK_SIZE": "2", "DEVICE_ID": "4"},
        {"RANK_TABLE_FILE": table, "RANK_ID": "1", "RANK_SIZE": "2", "DEVICE_ID": "6"},
    ]
    assert all("--clustered" in process.command for process in plan.processes)
    assert [process.log for process in plan.processes] == list(plan.worker_logs)


def test_a_rank_table_of_another_size_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "rt.json", {"0": "0", "1": "1"})
    rank = command(target="ascend", count=4, launcher="rank-table", rank_table=table)
    with pytest.raises(MultigrainError, match=r"spec\.devices\.rank_table: rt\.json") as caught:
        RankTableLauncher().plan(rank, LOGS)
    assert caught.value.kind is ErrorKind.INVALID_FIELD


def test_a_rank_table_of_several_hosts_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "rt.json", {"0": "0"}, {"1": "0"})
    rank = command(target="ascend", count=2, launcher="rank-table", rank_table=table)
    with pytest.raises(MultigrainError, match="2 servers") as caught:
        RankTableLauncher().plan(rank, LOGS)
    assert caught.value.kind is ErrorKind.UNSUPPORTED


@pytest.mark.parametrize("content", [None, "", "{}", '{"server_list":[{"device":[{}]}]}'])
def test_an_invalid_rank_table_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "rt.json"
    if content is not None:
        path.write_text(content)
    rank = command(target="ascend", launcher="rank-table", rank_table=str(path))
    with pytest.raises(MultigrainError, match="not a readable rank table") as caught:
        RankTableLauncher().plan(rank, LOGS)
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    ("kind", "count", "launcher", "expected"),
    [
        (JobKind.TRAINING, 1, "msrun", DirectLauncher),
        (JobKind.TRAINING, 2, "msrun", ClusterLauncher),
        (JobKind.TRAINING, 2, "rank-table", RankTableLauncher),
        (JobKind.EVALUATION, 1, "msrun", DirectLauncher),
        (JobKind.EVALUATION, 2, "msrun", ClusterLauncher),
        (JobKind.EXPORT, 2, "msrun", DirectLauncher),
    ],
)
def test_the_launcher_of_each_kind_of_job(
    kind: JobKind, count: int, launcher: str, expected: type
) -> None:
    asked = request(kind, count=count, launcher=launcher)
    assert type(choose_launcher(asked)) is expected
    assert world_of(asked) == (1 if kind is JobKind.EXPORT else count)


def test_free_ports_are_different() -> None:
    ports = {free_port() for _ in range(5)}
    assert len(ports) > 1
    assert all(1024 <= port <= 65535 for port in ports)


def test_a_port_in_use_is_detected_in_the_scheduler_log(tmp_path: Path) -> None:
    plan = ClusterLauncher(lambda: 1).plan(command(), tmp_path)
    assert not plan.port_was_taken()
    (tmp_path / "scheduler.log").write_text("Begin to Initialize MetaServerNode.\n")
    assert not plan.port_was_taken()
    (tmp_path / "scheduler.log").write_text(
        "[ERROR] DISTRIBUTED InitTCPServer] Failed to init the tcp server.\n"
    )
    assert plan.port_was_taken()


def test_the_cluster_variables_of_the_daemon_are_not_inherited() -> None:
    (process,) = DirectLauncher().plan(command(), LOGS).processes
    inherited = {"HOME": "/h", "MS_ROLE": "MS_WORKER", "RANK_TABLE_FILE": "/x", "RANK_ID": "7"}
    environment = process.environment_in(inherited)
    assert environment == {"HOME": "/h", "RANK_ID": "0", "RANK_SIZE": "1", "DEVICE_ID": "0"}
