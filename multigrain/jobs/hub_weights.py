"""Fetches a library's pretrained weights before the first attempt of a job."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from multigrain.errors import ErrorKind
from multigrain.events.records import JobError
from multigrain.jobs.failure import Failure
from multigrain.jobs.job_request import JobRequest
from multigrain.jobs.limits import StopSignal
from multigrain.processes import child_environment, child_setup, python_command

_SECONDS: Final = 3600.0  # a ResNet-152 has 230 MB
_POLL_SECONDS: Final = 0.1
_MAX_MESSAGE: Final = 1000
# Exit codes of multigrain.weights.hub.
_KINDS: Final = {3: ErrorKind.UNSUPPORTED, 4: ErrorKind.NOT_FOUND}


def fetch_weights(
    request: JobRequest,
    stop: StopSignal,
    *,
    command: Sequence[str] = python_command("multigrain.weights.hub"),
    seconds: float = _SECONDS,
) -> Failure | None:
    """Fetches ``request.hub_weights`` to ``request.weights_path``, unless the file is there.

    Args:
        request: of the job.
        stop: ends the download; the job then stops before it starts.
        command: that fetches; the name and the file are appended.
        seconds: how long it may take.

    Returns:
        Why the weights are missing; None if they are there, or a stop was requested.
    """
    target = Path(request.weights_path)
    if not request.hub_weights or target.exists():
        return None
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*command, request.hub_weights, str(target)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=child_environment(os.environ),
            cwd=target.parent,
            preexec_fn=child_setup(os.getpid()),
        )
        try:
            while process.poll() is None:
                if stop.requested:
                    return None
                if time.monotonic() > deadline:
                    return _failure(
                        ErrorKind.NOT_FOUND,
                        f"{request.hub_weights} was not fetched within {seconds:.0f} s: check "
                        "the network, or give the path of a file that you have downloaded",
                    )
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
        if process.returncode == 0 and target.exists():
            return None
        errors.seek(0)
        text = errors.read().decode(errors="replace").strip()
    kind = _KINDS.get(process.returncode, ErrorKind.INTERNAL)
    lines = text.splitlines()
    message = lines[-1] if lines else f"{request.hub_weights} was not fetched"
    return _failure(kind, message[:_MAX_MESSAGE])


def _failure(kind: ErrorKind, message: str) -> Failure:
    return Failure(JobError(kind.name, message))
