"""The sandbox of a worker: what of a job's process is restricted, and when.

Only an evaluation or an export with one worker on the CPU is restricted in all ways: workers of a
cluster talk to each other over the network, and drivers of accelerators need devices.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from multigrain.errors import MultigrainError
from multigrain.images.limits import read_limits
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.sandbox.apply import Sandbox, SandboxReport, apply
from multigrain.sandbox.policies import WORKER_VARIABLE, accelerator_sandbox, worker_sandbox


def confine_files(folder: JobFolder, *, target: str, clustered: bool) -> Sandbox | None:
    """Restricts which files a worker may open; before there are threads.

    Does nothing unless the daemon has said so in the environment.

    Args:
        folder: the job's.
        target: type of the device.
        clustered: whether the worker joins a cluster.

    Returns:
        The sandbox whose other part :func:`confine_calls` applies; None if there is none.
    """
    if os.environ.get(WORKER_VARIABLE) != "auto":
        return None
    sandbox = None
    if target == "cpu" and not clustered:
        sandbox = _of_job(folder)
    if sandbox is None:
        apply(accelerator_sandbox())
        return None
    # The only folder for temporary files is the working folder, which is that of the job's logs.
    os.environ["TMPDIR"] = tempfile.tempdir = os.getcwd()
    _print(apply(replace(sandbox, filter=False)))
    return sandbox


def confine_calls(sandbox: Sandbox | None) -> None:
    """Restricts system calls; after the worker has connected to its runner."""
    if sandbox is None:
        return
    _print(apply(replace(sandbox, files=None, limits={})))


def _print(report: SandboxReport) -> None:
    active = ", ".join(one.name for one in report.measures if one.active)
    missing = "; ".join(map(str, report.missing))
    print(f"restricted by {active}" + (f"; not by {missing}" if missing else ""), flush=True)


def _of_job(folder: JobFolder) -> Sandbox | None:
    """None if the job cannot be restricted; what is wrong with its files is reported later."""
    try:
        request = JobRequest.load(folder.spec)
        roots = read_limits(folder.image_limits).roots
    except (OSError, ValueError, MultigrainError):
        return None
    if request.kind is JobKind.TRAINING or roots is None:
        return None
    write = [folder.path, Path.cwd()]
    if request.kind is JobKind.EXPORT:
        write.append(Path(request.models_dir))
    return worker_sandbox(read=roots, write=write)
