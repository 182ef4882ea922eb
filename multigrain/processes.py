"""Process trees: bound to the parent's life, found again, ended; and priorities."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

JOB_VARIABLE = "MULTIGRAIN_JOB"
FOLDER_VARIABLE = "MULTIGRAIN_JOB_FOLDER"

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36


def job_environment(job_id: str, folder: Path) -> Mapping[str, str]:
    """The variables by which the processes of a job are known."""
    return {JOB_VARIABLE: job_id, FOLDER_VARIABLE: str(folder)}


def die_with_parent(parent: int) -> None:
    """Has this process killed when ``parent``, the thread that made it, ends.

    Ends this process at once if that has happened already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def child_setup(parent: int) -> Callable[[], None]:
    """For ``Popen(preexec_fn=...)`` in a process with one thread: ``die_with_parent`` and no
    SIGTERM, so that only the runner decides on an orderly end."""
    _prctl_function()  # loads the C library here, not between fork and exec

    def setup() -> None:
        die_with_parent(parent)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    return setup


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent has died."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Live processes that carry a job's folder, and all descendants of this process.

    Zombies are left out: they have ended.
    """
    wanted = f"{FOLDER_VARIABLE}={folder}".encode()
    me = os.getpid()
    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    for pid in psutil.pids():
        # Not ours (another user), or gone meanwhile: OSError.
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if pid not in found and pid != me:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
                if wanted in environment.split(b"\0"):
                    found[pid] = psutil.Process(pid)
    return [process for process in found.values() if _lives(process)]


def end_all(folder: Path, seconds: float = 10.0) -> list[int]:
    """Kills ``processes_of`` the folder until there is none, and collects the dead children.

    Returns:
        Pids that were still there after ``seconds`` (in an uninterruptible system call, say).
    """
    deadline = time.monotonic() + seconds
    while True:
        processes = processes_of(folder)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        collect_children()
        if not processes or time.monotonic() >= deadline:
            return [process.pid for process in processes]
        time.sleep(0.02)


def collect_children() -> None:
    """Takes the exit status of every child that has ended, also of adopted ones."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _prctl(option: int, value: int) -> None:
    function = _prctl_function()
    if function is not None and function(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _prctl_function() -> Callable[..., int] | None:
    """None where there is no prctl (macOS): the channel's end still ends the workers."""
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None, use_errno=True).prctl
    function.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    function.restype = ctypes.c_int
    return function


# MERGED: An engine does not outlive the daemon that started it.


def die_with_parent_code(parent_pid: int) -> None:
    """Asks the kernel for SIGKILL when the parent dies (Linux; elsewhere the socket's end
    must do). Exits at once if the parent has died before the request could be made."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(0)


# MERGED: Loading and warming up behind what other engines are serving.


_NICE = 10
_CAP_SYS_NICE = 23


@contextlib.contextmanager
def background() -> Iterator[None]:
    """Lets every other process go first while the block runs, where that can be taken back.

    A process may always lower its priority, but raise it again only with CAP_SYS_NICE or a
    large enough RLIMIT_NICE. Without them it is only kept from interrupting others as they wake
    up (SCHED_BATCH), which needs no privilege. On Linux both belong to threads, and new threads
    inherit them: the pools of a runtime too, so all are put back at the end.
    """
    if sys.platform != "linux":
        yield
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if _may_raise_to(nice):
        _for_all_threads(nice + _NICE, os.SCHED_OTHER)
    else:
        _for_all_threads(nice, os.SCHED_BATCH)
    try:
        yield
    finally:
        _for_all_threads(nice, os.SCHED_OTHER)


def _may_raise_to(nice: int) -> bool:
    if sys.platform != "linux":
        return False
    import resource

    # The limit says how far up: 20 - nice (setrlimit(2)).
    if resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20 - nice:
        return True
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_NICE & 1)
    return False


def _for_all_threads(nice: int, policy: int) -> None:
    if sys.platform != "linux":
        return
    for name in os.listdir("/proc/self/task"):
        # Some may have ended, and where a container forbids it, nothing is lost.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(int(name), policy, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, int(name), nice)
