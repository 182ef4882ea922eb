"""The runner process of a job: started by this daemon, or by an earlier one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from multigrain.events.log import is_locked
from multigrain.files import open_to_write
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.runner_identity import RunnerIdentity
from multigrain.processes import child_environment


@dataclass
class RunnerProcess:
    """A runner, identified by pid *and* start time, because pids are reused.

    A runner of an earlier daemon that has not written ``runner.json`` yet is only known by its
    lock on the job's event log.

    Attributes:
        folder: of the job.
        child: the process if this daemon started it.
    """

    folder: JobFolder
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    def start(
        cls, folder: JobFolder, command: Sequence[str], environment: Mapping[str, str]
    ) -> RunnerProcess:
        """Starts ``command <folder>`` in its own session, so that it outlives this process.

        Args:
            folder: of the job.
            command: starts a runner.
            environment: all that it and the processes that it starts get.

        Raises:
            OSError: if it cannot be started.
        """
        folder.logs.mkdir(exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with os.fdopen(open_to_write(folder.logs / "runner.log", flags), "ab") as log:
            # Not an asyncio subprocess: those are killed when their transport is closed.
            child = subprocess.Popen(
                [*command, str(folder.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=child_environment(environment),
                cwd=folder.path,
            )
        return cls(folder, child)

    @classmethod
    def find(cls, folder: JobFolder) -> RunnerProcess | None:
        """The running runner that an earlier daemon started, or None."""
        found = cls(folder)
        return found if found.alive() else None

    @property
    def pid(self) -> int | None:
        if self.child is not None:
            return self.child.pid
        identity = RunnerIdentity.load(self.folder.runner)
        return identity.pid if identity is not None else None

    @property
    def exit_code(self) -> int | None:
        """Its exit code (minus the signal number if a signal ended it); None if unknown."""
        return self.child.returncode if self.child is not None else None

    def alive(self) -> bool:
        """Whether it still runs, or any process holds the job's event log."""
        if self.child is not None and self.child.poll() is None:
            return True
        return self._process() is not None or is_locked(self.folder.events)

    def terminate(self) -> bool:
        """Sends SIGTERM, on which it saves and exits. False if there is no process to signal."""
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            return True
        process = self._process()
        if process is None:
            return False
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            return False
        return True

    def _process(self) -> psutil.Process | None:
        identity = RunnerIdentity.load(self.folder.runner)
        return identity.process() if identity is not None else None
