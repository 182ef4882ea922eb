"""The parent of a worker: light, outlives it, and tells the runner how it ended."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from multigrain.jobs.messages import Exit, GuardHello, Message, Terminate, encode
from multigrain.jobs.processes import die_with_parent
from multigrain.jobs.reporter import EXIT_RUNNER_LOST


@dataclass(frozen=True)
class GuardOptions:
    """Where the runner listens, and whose guard this is."""

    address: str
    token: str
    rank: int


class Guard:
    """Forks the worker before anything heavy is imported, then waits for its end.

    A worker that the kernel kills says nothing; a worker deep in native code hears nothing. So
    it is the guard that reports the end, and that kills the worker when the runner has gone.
    """

    def __init__(self, options: GuardOptions) -> None:
        self._options = options
        self._terminated = False
        self._runner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def run(self, work: Callable[[], int]) -> int:
        """Runs ``work`` in a child and returns the exit code for this process."""
        die_with_parent(os.getppid())
        try:
            self._runner.connect(self._options.address)
            self._say(GuardHello(self._options.token, self._options.rank, os.getpid()))
        except OSError:
            return EXIT_RUNNER_LOST
        # A signal must end the wait: Python writes its number into this pipe.
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
        # Not os._exit: MindSpore leaves its cluster when the interpreter ends.
        sys.exit(work())

    def _wait_for(self, child: int, woken_fd: int) -> int:
        sources: list[socket.socket | int] = [self._runner, woken_fd]
        while True:
            readable, _, _ = select.select(sources, [], [])
            if self._runner in readable and not self._runner_lives():
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return EXIT_RUNNER_LOST
            if woken_fd in readable:
                os.read(woken_fd, 4096)
            if self._terminated:
                self._terminated = False
                self._say(Terminate())
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid == child:
                return self._report(os.waitstatus_to_exitcode(status))

    def _report(self, code: int) -> int:
        """Tells the end; the guard's own exit code is what a shell would give."""
        killed = code < 0
        self._say(Exit(128 - code if killed else code, -code if killed else None))
        return 128 - code if killed else code

    def _runner_lives(self) -> bool:
        try:
            return bool(self._runner.recv(4096))
        except OSError:
            return False

    def _say(self, message: Message) -> None:
        self._runner.sendall(encode(message))

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._terminated = True
