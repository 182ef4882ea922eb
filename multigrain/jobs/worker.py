"""The worker process: sets up MindSpore and runs the code of the job's kind."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import NoReturn

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.jobs.confinement import confine_calls, confine_files
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.jobs.failure import describe_exception, memory_advice
from multigrain.jobs.ipc import ChannelReporter, Done, Failed, Hello
from multigrain.jobs.job_folder import JobFolder
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.jobs.launchers import COLLECTIVES, SET_DEVICE
from multigrain.kernels import limit_instructions
from multigrain.machine import THREAD_VARIABLES, cpus
from multigrain.memory import is_out_of_memory

EntryPoint = Callable[[WorkerContext], Outcome]

_ENTRY_POINTS = {
    JobKind.TRAINING: "multigrain.train:run",
    JobKind.EVALUATION: "multigrain.evaluate:run",
    JobKind.EXPORT: "multigrain.export:run",
}


def entry_point_for(kind: JobKind) -> EntryPoint:
    """Imports the function that runs a job of this kind; it needs MindSpore."""
    module, _, function = _ENTRY_POINTS[kind].partition(":")
    entry_point: EntryPoint = getattr(import_module(module), function)
    return entry_point


@dataclass(frozen=True)
class RankOptions:
    """What a worker gets from the command line and the environment.

    Attributes:
        folder: the job's.
        attempt: its number.
        rank: of the worker.
        world: number of workers.
        target: device type.
        threads: of the CPU; 0 = an equal share of the cores.
        device_id: number of the device.
        address: of the runner's socket.
        token: by which the runner accepts the worker.
        clustered: join a cluster, through a scheduler or a rank table.
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


def run_scheduler() -> NoReturn:
    """Runs MindSpore's scheduler until the workers have left the cluster; ends the process.

    The scheduler is native code: of MindSpore's package only the extension module is imported,
    without the seconds that the package itself takes.
    """
    faulthandler.enable()
    found = find_spec("mindspore")
    if found is None or found.submodule_search_locations is None:
        print("MindSpore is not installed", file=sys.stderr)
        os._exit(1)
    package = ModuleType("mindspore")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["mindspore"] = package
    code = 0
    try:
        import_module("mindspore._c_expression").init_cluster()
    except Exception:
        _print_traceback()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # The exit handlers of the extension module need the whole package.
    os._exit(code)


def set_up_mindspore(options: RankOptions) -> None:
    """Limits threads, selects the device and joins the cluster.

    Raises:
        MultigrainError: UNSUPPORTED, if the device cannot be used.
    """
    _limit_threads(options)
    _init_mindspore(options)


def run_worker(
    options: RankOptions,
    find_entry_point: Callable[[JobKind], EntryPoint] = entry_point_for,
    set_up: Callable[[RankOptions], None] = set_up_mindspore,
) -> int:
    """Runs a worker and reports its result to the runner.

    Args:
        options: of the worker.
        find_entry_point: returns the function to run; called after ``set_up``.
        set_up: prepares the process.

    Returns:
        The exit code.
    """
    faulthandler.enable()
    sandbox = confine_files(options.folder, target=options.target, clustered=options.clustered)
    hello = Hello(options.token, options.rank, options.world, os.getpid())
    try:
        reporter = ChannelReporter(options.address, hello)
    except OSError as error:
        print(f"cannot connect to the runner: {error}", file=sys.stderr, flush=True)
        return 1
    confine_calls(sandbox)
    advice = ""
    try:
        request = JobRequest.load(options.folder.spec)
        advice = memory_advice(request)
        set_up(options)
        entry_point = find_entry_point(request.kind)
        reporter.ready()
        outcome = entry_point(
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
        _print_traceback()
        field = error.violations[0].field if error.violations else ""
        return _fail(reporter, Failed(error.kind.name, error.message, field))
    except Exception as error:  # a defect of ours or of a library: the runner retries
        _print_traceback()
        memory = is_out_of_memory(error)
        described = describe_exception(error, advice)
        return _fail(reporter, Failed("", described, out_of_memory=memory))
    reporter.finish(Done(outcome.stopped, outcome.message))
    return 0


def _print_traceback() -> None:
    # With a full disk the log cannot be written, but the runner must get the cause.
    with contextlib.suppress(OSError):
        traceback.print_exc()


def _fail(reporter: ChannelReporter, failed: Failed) -> int:
    reporter.finish(failed)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # MindSpore's exit handlers wait for the other workers, which wait for this one.
    os._exit(1)


def _threads(options: RankOptions) -> int:
    """The worker's share of the CPUs."""
    return options.threads or max(1, cpus().available // options.world)


def _limit_threads(options: RankOptions) -> None:
    """Divides the CPUs among the workers; must precede the import of numerical libraries."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(_threads(options))))


def _init_mindspore(options: RankOptions) -> None:
    if options.target == "cpu" and (limited := limit_instructions()):
        print(limited, flush=True)
    import mindspore
    from mindspore import communication

    if cpus().limited:
        # By default it counts the CPUs of the machine, not those of a container.
        usual = mindspore.get_context("runtime_num_threads")
        mindspore.set_context(runtime_num_threads=min(usual, _threads(options)))
    # By default kernels use every CPU, whatever the number of workers, and try out several numbers
    # of threads in the first fifteen steps, which makes the sixth to the fifteenth twice as slow.
    mindspore.device_context.cpu.op_tuning.threads_num(_threads(options))
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
