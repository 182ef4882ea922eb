"""Creates job folders, starts runners and inspects their events and processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from multigrain.events.log import Event, EventWriter, read_events
from multigrain.events.records import JobState, LossRecord, Record, StateRecord
from multigrain.jobs.ipc import channel_folders
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.processes import FOLDER_VARIABLE
from multigrain.specs.base import DeviceSpec
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.specs.training import TrainingSpec
from tests.jobs.light_runner import Cluster

ROOT = Path(__file__).parents[2]


@dataclass
class Job:
    """A job folder under test and its runner process."""

    folder: JobFolder
    runners: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self,
        work: str,
        *options: str,
        cluster: Cluster = "none",
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.jobs.light_runner", str(self.folder.path)]
        name = work if ":" in work else f"tests.jobs.work:{work}"
        command += ["--work", name, "--cluster", cluster, *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        runner = subprocess.Popen(command, env=environment, start_new_session=True)
        self.runners.append(runner)
        return runner

    def run(
        self,
        work: str,
        *options: str,
        cluster: Cluster = "none",
        timeout: float = 30,
    ) -> JobState:
        """Runs to the end; returns the last state."""
        assert self.start(work, *options, cluster=cluster).wait(timeout) == 0
        return self.states()[-1].state

    def events(self) -> list[Event]:
        return list(read_events(self.folder.events))

    def records(self) -> list[Record]:
        return [event.record for event in self.events()]

    def states(self) -> list[StateRecord]:
        return [record for record in self.records() if isinstance(record, StateRecord)]

    def losses(self) -> list[LossRecord]:
        return [record for record in self.records() if isinstance(record, LossRecord)]

    def wait_for(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, [str(record) for record in self.records()]
            time.sleep(0.02)

    def processes(self) -> list[psutil.Process]:
        """Every process of the job except its runner and zombies."""
        mark = f"{FOLDER_VARIABLE}={self.folder.path}".encode()
        found = []
        for process in psutil.process_iter():
            try:
                environment = Path(f"/proc/{process.pid}/environ").read_bytes()
                if mark in environment and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (OSError, psutil.NoSuchProcess):
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        """The worker processes, which are children of guards."""
        ranks = [
            process for process in self.processes() if "tests.jobs.light_rank" in _line(process)
        ]
        guards = {process.pid for process in ranks}
        return [process for process in ranks if process.ppid() in guards]

    def end(self) -> None:
        for runner in self.runners:
            if runner.poll() is None:
                os.kill(runner.pid, signal.SIGKILL)
            runner.wait()
        for process in self.processes():
            process.kill()
        for folder in channel_folders(self.folder.path):
            shutil.rmtree(folder)


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def make_job(
    parent: Path,
    *,
    kind: JobKind = JobKind.TRAINING,
    max_restarts: int = 3,
    labels: dict[str, str] | None = None,
    **devices: object,
) -> Job:
    """A job folder as the daemon creates it: spec.json and a first event, QUEUED."""
    folder = JobFolder(parent.resolve() / "job-1")
    folder.path.mkdir()
    spec = DeviceSpec.model_validate(devices)
    request = JobRequest(
        job_id=folder.job_id,
        kind=kind,
        labels=labels or {},
        create_time="2026-01-31T12:00:00.000000Z",
        training=TrainingSpec(devices=spec, max_restarts=max_restarts)
        if kind is JobKind.TRAINING
        else None,
        evaluation=EvaluationSpec(devices=spec) if kind is JobKind.EVALUATION else None,
    )
    folder.spec.write_text(request.model_dump_json())
    with EventWriter(folder.events, folder.job_id) as writer:
        writer.append(StateRecord(JobState.QUEUED, "submitted"), 0)
    return Job(folder)
