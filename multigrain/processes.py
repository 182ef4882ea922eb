"""Child processes: how they are started, and what ended them; process trees; priorities."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import psutil

JOB_VARIABLE = "MULTIGRAIN_JOB"
FOLDER_VARIABLE = "MULTIGRAIN_JOB_FOLDER"

# Lists of folders in which an empty entry means the working folder.
_FOLDER_LISTS = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
_FOLDERS = ("PYTHONUSERBASE", "PYTHONPYCACHEPREFIX")
# For an interactive Python.
_INTERACTIVE = ("PYTHONSTARTUP", "PYTHONINSPECT")

# What engines, runners and workers get of the daemon's environment: search paths, language and time
# zone, Python's own switches, memory allocators, and what sets up libraries and drivers that
# compute. All else stays with the daemon: its environment may have passwords and keys.
_NEEDED_NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TZDIR", "TMPDIR", "TERM"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES", "XDG_CACHE_HOME", "MPLCONFIGDIR"),
        # Of CANN, whose script set_env.sh sets them without a common prefix.
        *("TOOLCHAIN_HOME", "TE_PARALLEL_COMPILER", "MAX_COMPILE_CORE_NUM", "TASK_QUEUE_ENABLE"),
        *("INF_NAN_MODE_ENABLE", "TUNE_BANK_PATH", "PROFILING_MODE", "PROFILING_OPTIONS"),
    }
)
_NEEDED_PREFIXES = (
    *("LC_", "PYTHON", "MALLOC_", "MIMALLOC_", "JEMALLOC_", "TCMALLOC_", "COVERAGE_"),
    # Threads of numerical libraries.
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "NUMEXPR_", "TBB_"),
    *("OV_", "OPENVINO_", "ONEDNN_", "DNNL_", "ORT_"),
    *("MS_", "MINDSPORE_", "GLOG_", "RANK_", "DEVICE_"),
    *("CUDA_", "CUDNN_", "CUBLAS_", "CUBLASLT_", "NVIDIA_", "NCCL_"),
    # RDMA between hosts, also as NCCL's plugins use it.
    *("IBV_", "RDMAV_", "MLX5_", "UCX_", "FI_"),
    *("ASCEND_", "HCCL_", "ACL_", "ATB_", "ASDOPS_", "LCCL_", "LCAL_"),
)
# A name such as NVIDIA_API_KEY begins like a driver's.
_SECRET_PARTS = ("KEY", "TOKEN", "SECRET", "PASSW", "CREDENTIAL")

_SIGNALS: dict[int, str] = {
    signal.SIGABRT: "aborted by native code",
    signal.SIGBUS: "usually because /dev/shm is full; increase it",
    signal.SIGFPE: "an arithmetic error in native code",
    signal.SIGILL: "a library uses an instruction that this CPU does not have; "
    "install a build for this CPU",
    signal.SIGSEGV: "a crash in native code",
    signal.SIGSYS: "a system call that a seccomp filter forbids",
    signal.SIGTERM: "terminated from outside",
    signal.SIGXCPU: "its limit of CPU time (ulimit -t) is reached",
    signal.SIGXFSZ: "its limit of file size (ulimit -f) is reached",
}

_OOM_SCORE = 300  # counts like three tenths of the memory

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_CAP_SYS_NICE = 23  # linux/capability.h
_LOW_PRIORITY = 10  # added to the nice value


def python_command(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line that runs a module of this interpreter's environment.

    Every Python process of the project is started with this and :func:`child_environment`: what
    lies in the working folder, which other users may be able to write, is not imported.

    Args:
        module: its full name.
        arguments: of the module.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child process, in which nothing means the working folder.

    Absolute entries of search paths stay: CANN, CUDA and operators set PYTHONPATH and
    LD_LIBRARY_PATH. Empty and relative ones are removed, also those of the common
    ``export PYTHONPATH=/some/folder:$PYTHONPATH``.

    Args:
        environment: what the child inherits, with its own additions.
    """
    kept = {name: value for name, value in environment.items() if name not in _INTERACTIVE}
    for name in _FOLDER_LISTS:
        if name in kept:
            entries = [entry for entry in kept.pop(name).split(os.pathsep) if os.path.isabs(entry)]
            if entries:
                kept[name] = os.pathsep.join(entries)
    for name in _FOLDERS:
        if not os.path.isabs(kept.get(name, "/")):
            del kept[name]
    kept.setdefault("PATH", os.defpath)
    # Unlike -P, it also holds for what the child starts: multiprocessing.
    kept["PYTHONSAFEPATH"] = "1"
    # ONNX Runtime would keep an id of this machine in a file, for reports over the network.
    kept["ORT_DISABLE_TELEMETRY"] = "1"
    return kept


def keep_files_private() -> None:
    """Has this process and its children create files and folders for their own user only.

    The umask of whoever started the process might let other users read weights and logs, or even
    add files that the daemon would read.
    """
    os.umask(0o077)


def needed_environment(
    environment: Mapping[str, str], also: Collection[str] = ()
) -> dict[str, str]:
    """The part of an environment that engines, runners and workers need.

    Names that look like those of secrets are left out even if their beginning is listed.

    Args:
        environment: the daemon's.
        also: further names, as the operator configured them; one that ends with ``*`` stands for
            all names that begin so.
    """
    names = frozenset(name for name in also if not name.endswith("*"))
    prefixes = tuple(name[:-1] for name in also if name.endswith("*"))
    return {
        name: value
        for name, value in environment.items()
        if name in _NEEDED_NAMES
        or name in names
        or name.startswith(prefixes)
        or (name.startswith(_NEEDED_PREFIXES) and not any(part in name for part in _SECRET_PARTS))
    }


def find_program(name: str) -> str | None:
    """The path of a program on PATH; None if there is none. Never one in the working folder."""
    return shutil.which(name, path=child_environment(os.environ)["PATH"])


def end_first_without_memory(pid: int, score: int = _OOM_SCORE) -> None:
    """Has the kernel's OOM killer prefer a process to others, as browsers do with their tabs.

    An engine that is killed is replaced, and the daemon says why; without the daemon nobody does.

    Args:
        pid: of the process.
        score: thousandths of the memory that it counts as using in addition.
    """
    # Every process may raise the value; a container may hide the file, which is harmless.
    with contextlib.suppress(OSError, ValueError):
        file = Path(f"/proc/{pid}/oom_score_adj")
        file.write_text(str(min(1000, int(file.read_text()) + score)))


def describe_signal(number: int) -> str:
    """A signal as "SIGSEGV (signal 11)"."""
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"


def explain_signal(number: int) -> str:
    """What a signal that ended a process usually means; "" if unknown."""
    return _SIGNALS.get(number, "")


def job_environment(job_id: str, folder: Path) -> Mapping[str, str]:
    """The environment variables that mark the processes of a job."""
    return {JOB_VARIABLE: job_id, FOLDER_VARIABLE: str(folder)}


def die_with_parent(parent: int, *, exit_code: int = 1) -> None:
    """Has the kernel kill this process when ``parent``, the thread that started it, ends.

    Exits at once if the parent has ended already. Elsewhere than on Linux the end of the socket
    between the two must end this process.

    Args:
        parent: process id.
        exit_code: if the parent has ended already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(exit_code)


def child_setup(parent: int) -> Callable[[], None]:
    """For ``Popen(preexec_fn=...)`` in a process with one thread.

    The child dies with its parent and ignores SIGTERM: only the runner decides when to stop.
    """
    _prctl_function()  # loads the C library now, not between fork and exec

    def setup() -> None:
        die_with_parent(parent)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    return setup


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent has ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Live processes marked with a job's folder, and all descendants of this process.

    Zombies are left out.
    """
    wanted = f"{FOLDER_VARIABLE}={folder}".encode()
    me = os.getpid()
    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    for pid in psutil.pids():
        # OSError: another user's process, or one that has just ended.
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if pid not in found and pid != me:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
                if wanted in environment.split(b"\0"):
                    found[pid] = psutil.Process(pid)
    return [process for process in found.values() if _is_alive(process)]


def end_all(folder: Path, seconds: float = 10.0) -> list[int]:
    """Kills ``processes_of`` a folder until none is left, and reaps the dead children.

    For a process without other children.

    Returns:
        Pids that were still alive after ``seconds`` (in an uninterruptible system call, say).
    """
    deadline = time.monotonic() + seconds
    while True:
        processes = processes_of(folder)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        left = reap_children()
        if not (processes or left) or time.monotonic() >= deadline:
            return [process.pid for process in processes]
        time.sleep(0.02)


def reap_children() -> bool:
    """Reaps every child that has ended, adopted ones too; returns whether there are others.

    A child whose first thread has ended while others have not looks like one that has ended.
    """
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
        return True
    return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _prctl(option: int, value: int) -> None:
    function = _prctl_function()
    if function is not None and function(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _prctl_function() -> Callable[..., int] | None:
    """None where there is no prctl (macOS): closing the channel still ends the workers."""
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None, use_errno=True).prctl
    function.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    function.restype = ctypes.c_int
    return function


@contextlib.contextmanager
def low_priority() -> Iterator[None]:
    """Runs the block at a low priority, if the priority can be restored afterwards.

    A process may always lower its priority, but raise it again only with CAP_SYS_NICE or a large
    enough RLIMIT_NICE. Without them it uses SCHED_BATCH, which needs no privilege and only keeps
    it from preempting others. On Linux both are properties of threads that new threads (such as a
    runtime's pool) inherit, so the priority of every thread is restored at the end.
    """
    if sys.platform != "linux":
        yield
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if _can_raise_to(nice):
        _for_all_threads(nice + _LOW_PRIORITY, os.SCHED_OTHER)
    else:
        _for_all_threads(nice, os.SCHED_BATCH)
    try:
        yield
    finally:
        _for_all_threads(nice, os.SCHED_OTHER)


def _can_raise_to(nice: int) -> bool:
    if sys.platform != "linux":
        return False
    import resource

    # setrlimit(2): the lowest nice value that the limit allows is 20 - limit.
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
        # A thread may have ended, and a container may forbid it, which is harmless.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(int(name), policy, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, int(name), nice)
