"""What a worker does for each kind of job. Imported when it is needed: it brings MindSpore."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.jobs.failure import describe_exception
from multigrain.jobs.ipc import ChannelReporter, Done, Failed, Hello
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.jobs.launchers import COLLECTIVES, SET_DEVICE
from multigrain.memory import is_out_of_memory

Work = Callable[[WorkerContext], Outcome]

_WORK = {
    JobKind.TRAINING: "multigrain.train:run",
    JobKind.EVALUATION: "multigrain.evaluate:run",
    JobKind.EXPORT: "multigrain.export:run",
}


def work_of(kind: JobKind) -> Work:
    """The function that does a job of this kind."""
    return load_work(_WORK[kind])


def load_work(name: str) -> Work:
    """The function that ``"module:function"`` names."""
    module, _, function = name.partition(":")
    work: Work = getattr(import_module(module), function)
    return work


# MERGED: The process that does a rank's work, and the one that is the cluster's scheduler.


THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class RankOptions:
    """What the command line and the environment tell a rank.

    ``clustered`` is whether there are peers to join: a scheduler or a rank table.
    """

    folder: JobFolder
    attempt: int
    rank: int
    world: int
    target: str
    threads: int
    device_id: int
    address: str
    token: str
    clustered: bool
    work: str = ""
    bare: bool = False


def run_scheduler(options: RankOptions) -> int:
    """Is MindSpore's scheduler: ``init`` returns, or ends the process, when the workers end."""
    _set_up_mindspore(options)
    return 0


def run_worker(options: RankOptions) -> int:
    """Does the rank's work and tells the runner how it ended; returns the exit code."""
    faulthandler.enable()
    hello = Hello(options.token, options.rank, options.world, os.getpid())
    try:
        reporter = ChannelReporter(options.address, hello)
    except OSError as error:
        print(f"the runner is gone: {error}", file=sys.stderr, flush=True)
        return 1
    try:
        request = JobRequest.load(options.folder.spec)
        if not options.bare:
            _limit_threads(options)
            _set_up_mindspore(options)
        work = load_work(options.work) if options.work else work_of(request.kind)
        reporter.ready()
        outcome = work(
            WorkerContext(
                request=request,
                folder=options.folder,
                reporter=reporter,
                attempt=options.attempt,
                rank=options.rank,
                world=options.world,
                resume=options.attempt > 1,
            )
        )
    except MultigrainError as error:
        _log_trace()
        field = error.violations[0].field if error.violations else ""
        return _give_up(reporter, Failed(error.kind.name, error.message, field))
    except Exception as error:  # a defect of ours or of a library: the runner restarts the job
        _log_trace()
        memory = is_out_of_memory(error)
        return _give_up(reporter, Failed("", describe_exception(error), out_of_memory=memory))
    reporter.finish(Done(outcome.stopped, outcome.message))
    return 0


def _log_trace() -> None:
    # On a full disk the log takes nothing, and the runner must hear of the cause all the same.
    with contextlib.suppress(OSError):
        traceback.print_exc()


def _give_up(reporter: ChannelReporter, failed: Failed) -> int:
    reporter.finish(failed)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # MindSpore's way out waits for the other workers, which wait for this one.
    os._exit(1)


def _limit_threads(options: RankOptions) -> None:
    """Shares the cores out, before a library counts them."""
    cores = len(os.sched_getaffinity(0))
    threads = options.threads or max(1, cores // options.world)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))


def _set_up_mindspore(options: RankOptions) -> None:
    import mindspore
    from mindspore import communication

    target = SET_DEVICE[options.target]
    try:
        if target == "CPU":
            mindspore.set_device(target)
        else:
            mindspore.set_device(target, options.device_id)
    except (RuntimeError, ValueError) as error:
        raise MultigrainError(
            ErrorKind.UNSUPPORTED,
            f"spec.devices.target: {options.target} cannot be used on this machine: "
            f"{str(error).splitlines()[0]}",
        ) from error
    if options.clustered:
        communication.init(COLLECTIVES[options.target])
