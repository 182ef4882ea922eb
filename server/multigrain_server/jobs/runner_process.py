"""The runner process of a job, seen from outside: started here, or found again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from multigrain.events.log import is_locked
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.runner_identity import RunnerIdentity


@dataclass
class RunnerProcess:
    """A runner by pid *and* start time: a pid alone may have been given to another process.

    One that was neither started here nor has written ``runner.json`` yet is known by its lock
    on the job's events only.
    """

    folder: JobFolder
    child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    def spawn(
        cls, folder: JobFolder, command: Sequence[str], environment: Mapping[str, str]
    ) -> RunnerProcess:
        """Starts ``command <folder>`` in a session of its own, so that it outlives this process.

        Raises:
            OSError: if it cannot be started.
        """
        folder.logs.mkdir(exist_ok=True)
        with (folder.logs / "runner.log").open("ab") as log:
            # Not an asyncio subprocess: closing its transport would kill the runner.
            child = subprocess.Popen(
                [*command, str(folder.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **environment},
                cwd=folder.path,
            )
        return cls(folder, child)

    @classmethod
    def find(cls, folder: JobFolder) -> RunnerProcess | None:
        """The living runner that an earlier daemon started, or None."""
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
        """Its exit code, minus the signal number if a signal ended it; None if not known."""
        return self.child.returncode if self.child is not None else None

    def alive(self) -> bool:
        """Whether it still runs, or somebody else writes the job's events."""
        if self.child is not None and self.child.poll() is None:
            return True
        return self._found() is not None or is_locked(self.folder.events)

    def terminate(self) -> bool:
        """Asks it to end in order (SIGTERM). False if there is nobody to ask."""
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            return True
        process = self._found()
        if process is None:
            return False
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            return False
        return True

    def _found(self) -> psutil.Process | None:
        identity = RunnerIdentity.load(self.folder.runner)
        return identity.process() if identity is not None else None
