"""``python -m multigrain.jobs.rank``: what launchers start for each worker and the scheduler.

It is the guard, a light process that forks the worker and reports its exit to the runner. With
MS_ROLE=MS_SCHED in the environment it forks the cluster's scheduler.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from multigrain.jobs.ipc import (
    EXIT_RUNNER_LOST,
    SCHEDULER_RANK,
    Exit,
    GuardHello,
    Message,
    Terminate,
    encode,
)
from multigrain.jobs.job_folder import JobFolder
from multigrain.processes import die_with_parent, keep_files_private
from multigrain.streams import reserve_descriptors

if TYPE_CHECKING:
    from multigrain.jobs.worker import RankOptions

CHANNEL_VARIABLE = "MULTIGRAIN_CHANNEL"
TOKEN_VARIABLE = "MULTIGRAIN_TOKEN"


@dataclass(frozen=True)
class GuardOptions:
    """The runner's socket and token, and the rank of the worker."""

    address: str
    token: str
    rank: int


class Guard:
    """Forks the worker before anything heavy is imported, then waits for its exit.

    A worker that the kernel kills cannot report it, and a worker in native code does not notice
    that the runner has gone. The guard therefore reports the exit, and kills the worker when the
    runner has gone.
    """

    def __init__(self, options: GuardOptions) -> None:
        self._options = options
        self._terminated = False
        self._runner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def run(self, work: Callable[[], int]) -> int:
        """Runs ``work`` in a child process; returns the exit code of this process."""
        die_with_parent(os.getppid())
        try:
            self._runner.connect(self._options.address)
            self._send(GuardHello(self._options.token, self._options.rank, os.getpid()))
        except OSError:
            return EXIT_RUNNER_LOST
        # Python writes the number of a signal into this pipe, which ends the wait.
        read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write_fd)
        guard = os.getpid()
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(read_fd)
            os.close(write_fd)
            self._runner.close()
            self._in_child(guard, work)
        return self._wait_for(child, read_fd)

    def _in_child(self, guard: int, work: Callable[[], int]) -> NoReturn:
        die_with_parent(guard)
        # Not os._exit: MindSpore leaves its cluster when the interpreter exits.
        sys.exit(work())

    def _wait_for(self, child: int, woken_fd: int) -> int:
        sources: list[socket.socket | int] = [self._runner, woken_fd]
        while True:
            readable, _, _ = select.select(sources, [], [])
            if self._runner in readable and not self._runner_is_alive():
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return EXIT_RUNNER_LOST
            if woken_fd in readable:
                os.read(woken_fd, 4096)
            if self._terminated:
                self._terminated = False
                self._send(Terminate())
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid == child:
                return self._report(os.waitstatus_to_exitcode(status))

    def _report(self, code: int) -> int:
        """Reports the exit. The guard's own exit code is the one that a shell would report."""
        killed = code < 0
        self._send(Exit(128 - code if killed else code, -code if killed else None))
        return 128 - code if killed else code

    def _runner_is_alive(self) -> bool:
        try:
            return bool(self._runner.recv(4096))
        except OSError:
            return False

    def _send(self, message: Message) -> None:
        self._runner.sendall(encode(message))

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._terminated = True


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="multigrain.jobs.rank", description=__doc__)
    parser.add_argument("--folder", required=True, help="the job's folder")
    parser.add_argument("--attempt", required=True, type=int)
    parser.add_argument("--world", required=True, type=int, help="number of workers")
    parser.add_argument("--target", required=True, choices=["cpu", "gpu", "ascend"])
    parser.add_argument("--threads", type=int, default=0, help="0: an even share of the cores")
    parser.add_argument("--clustered", action="store_true", help="join a cluster")
    return parser


def main(
    arguments: list[str] | None = None, run_worker: Callable[[RankOptions], int] | None = None
) -> int:
    """Runs a worker, or the scheduler, under a guard.

    Args:
        arguments: of the command line; None = this process's.
        run_worker: the worker; None = ``multigrain.jobs.worker.run_worker``.

    Returns:
        The exit code.
    """
    options = parser().parse_args(arguments)
    scheduler = os.environ.get("MS_ROLE") == "MS_SCHED"
    rank = SCHEDULER_RANK if scheduler else int(os.environ["RANK_ID"])
    address, token = os.environ[CHANNEL_VARIABLE], os.environ[TOKEN_VARIABLE]

    def work() -> int:
        # Only the child process needs these imports.
        from multigrain.jobs import worker

        if scheduler:
            worker.run_scheduler()
        rank_options = worker.RankOptions(
            folder=JobFolder(Path(options.folder)),
            attempt=options.attempt,
            rank=rank,
            world=options.world,
            target=options.target,
            threads=options.threads,
            device_id=int(os.environ.get("DEVICE_ID", "0")),
            address=address,
            token=token,
            clustered=options.clustered,
        )
        return (run_worker or worker.run_worker)(rank_options)

    return Guard(GuardOptions(address, token, rank)).run(work)


if __name__ == "__main__":
    reserve_descriptors()
    keep_files_private()
    sys.exit(main())
