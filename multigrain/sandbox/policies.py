"""The sandboxes of this project: of an engine, of a decoder process, and of a job's worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import multigrain
from multigrain.machine import available_memory, cpus
from multigrain.sandbox.apply import Files, Sandbox

_GIB: Final = 1 << 30

# Programs and libraries of the system; what does not exist is skipped.
_SYSTEM: Final = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/gnu/store")
# What the dynamic linker, OpenSSL and time zones read. No passwords, tokens or host names.
_SETTINGS: Final = (
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload"),
    *("/etc/localtime", "/etc/timezone", "/etc/os-release", "/etc/ssl/openssl.cnf"),
)
# How many CPUs and how much memory there are, also of a container; and how long decoder processes
# have computed. Landlock hides what processes outside have in memory, such as their environment.
_KERNEL: Final = (
    *("/proc", "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm", "/sys/bus/pci"),
    *("/dev/random", "/dev/urandom"),
)
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full")

_OF_LIBRARIES: Final = ("site-packages", "dist-packages")
_FEW_FILES: Final = 1024
_DECODER_FILES: Final = 32
# glibc reserves 64 MiB for each of up to 8 arenas per CPU, and 8 MiB for the stack of a thread.
_RESERVED_PER_CPU: Final = _GIB
#: Says to workers whether they restrict themselves; set by the daemon. Without it, they do not.
WORKER_VARIABLE: Final = "MULTIGRAIN_WORKER_SANDBOX"
_ACCELERATOR: Final = "not applied: drivers of accelerators need devices, and clusters the network"


def engine_sandbox(
    bundle: Path,
    device: str,
    *,
    memory_bytes: int = 0,
    also: Sequence[Path] = (),
) -> Sandbox:
    """The sandbox of an engine: it reads one bundle, writes no file, and has its socket already.

    With an accelerator, only core dumps are switched off and new privileges prevented: drivers
    open devices and sockets, and start programs, in ways that differ between their versions.

    A graph that wants more memory than ``memory_bytes`` (RLIMIT_DATA) is refused as it is loaded,
    and the kernel need not end a process for it. The limit of addresses (RLIMIT_AS) is twice that
    and 1 GiB per CPU, as libraries reserve more than they use.

    Args:
        bundle: its folder.
        device: that computes: cpu, gpu or ascend.
        memory_bytes: that it may have; 0 = all of the machine or its container.
        also: further paths that it may read.
    """
    if device != "cpu":
        return accelerator_sandbox()
    files = Files(
        read=(*runtime_paths(), bundle, *also),
        write=_paths(_DEVICES),
        list=listed_paths(),
    )
    limit = memory_bytes or available_memory()
    return Sandbox(
        files=files,
        limits={
            "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": _FEW_FILES,
            "RLIMIT_DATA": limit,
            "RLIMIT_AS": 2 * limit + cpus().machine * _RESERVED_PER_CPU,
        },
    )


def template_sandbox() -> Sandbox:
    """The sandbox of the process that forks decoder processes.

    It imports what decoding needs, and tells the kernel which process to end first.
    """
    return Sandbox(
        files=Files(
            read=library_paths(),
            write=_paths((*_DEVICES, "/proc")),
            list=listed_paths(),
        ),
        fork=True,
        limits={"RLIMIT_CORE": 0, "RLIMIT_NOFILE": _FEW_FILES},
    )


def decoder_sandbox() -> Sandbox:
    """The sandbox of a process that decodes images of strangers, with what is open already.

    It may read Python and the libraries of the system: some decoders load a part of theirs for the
    first image that needs it. It writes to no file but its standard error.
    """
    return Sandbox(
        files=Files(read=library_paths(), list=listed_paths()),
        limits={"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NOFILE": _DECODER_FILES},
    )


def worker_sandbox(*, read: Iterable[Path], write: Iterable[Path]) -> Sandbox:
    """The sandbox of a job's only worker on a CPU: an evaluation or an export.

    It may start programs, as MindSpore does when it is imported, but only those of the system and
    of this Python, and they are in the sandbox too.

    Args:
        read: the dataset, the checkpoint, the job.
        write: its results and the folder for temporary files.
    """
    return Sandbox(
        files=Files(
            read=tuple(read),
            execute=runtime_paths(),
            write=(*_paths(_DEVICES), *write),
            list=listed_paths(),
        ),
        execute=True,
        fork=True,
        attributes=True,
        overrides=True,
        limits={"RLIMIT_CORE": 0},
    )


def accelerator_sandbox() -> Sandbox:
    """What is known to do no harm to any driver; also for workers that form a cluster."""
    return Sandbox(
        capabilities=True,
        filter=False,
        limits={"RLIMIT_CORE": 0},
        reasons=dict.fromkeys(("files", "signals", "network", "system_calls"), _ACCELERATOR),
    )


def runtime_paths() -> tuple[Path, ...]:
    """Everything that a runtime reads: libraries, settings of the system, and of the kernel."""
    return (*library_paths(), *_paths((*_SETTINGS, *_KERNEL)))


def library_paths() -> tuple[Path, ...]:
    """The installation of Python, its packages, and the programs and libraries of the system."""
    prefixes = [Path(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)]
    found = [*prefixes, Path(multigrain.__file__).parent]
    for entry in _search_path():
        if entry.name in _OF_LIBRARIES or entry.suffix == ".zip" or _has_installed(entry):
            found.append(entry)
        elif not any(entry.is_relative_to(prefix) for prefix in prefixes):
            found += _modules(entry)
    found += [Path(entry) for entry in _entries("LD_LIBRARY_PATH")]
    return tuple(dict.fromkeys((*found, *_paths(_SYSTEM))))


def listed_paths() -> tuple[Path, ...]:
    """Folders that Python searches for modules.

    The sources of a project, on the search path of an editable installation, may have data
    beside them: only their packages are readable.
    """
    return _search_path()


def _search_path() -> tuple[Path, ...]:
    return tuple(path for entry in sys.path if (path := Path(entry)).is_absolute())


def _has_installed(folder: Path) -> bool:
    """Whether packages were installed in a folder of another name (``pip install --target``).

    They have libraries and parts without ``__init__.py`` beside their modules.
    """
    return next(folder.glob("*.dist-info"), None) is not None


def _modules(folder: Path) -> list[Path]:
    """The packages and modules of a folder of the search path."""
    try:
        return [
            path
            for path in folder.iterdir()
            if path.suffix in (".py", ".so") or (path / "__init__.py").exists()
        ]
    except OSError:
        return []


def _entries(variable: str) -> list[str]:
    entries = os.environ.get(variable, "").split(os.pathsep)
    return [entry for entry in entries if os.path.isabs(entry)]


def _paths(names: Iterable[str]) -> tuple[Path, ...]:
    return tuple(Path(name) for name in names)
