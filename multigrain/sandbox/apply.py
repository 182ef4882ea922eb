"""Describes the sandbox of a process, applies it, and reports what of it holds.

Each measure is taken on its own: what a kernel lacks, or a container forbids, is named in the
report, and the process goes on without it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from multigrain.sandbox import landlock, seccomp

MeasureName = Literal["no_new_privs", "limits", "files", "signals", "network", "system_calls"]
"""What each measure does:

- ``no_new_privs``: no program that it starts gets more rights (setuid, file capabilities), and
  of the capabilities of root only those remain that read files and set priorities;
- ``limits``: of open files, file sizes, memory and core dumps (``setrlimit``);
- ``files``: only some paths can be opened (Landlock);
- ``signals``: no process outside can be signaled (Landlock);
- ``network``: no socket can be opened or connected (seccomp);
- ``system_calls``: those that only attacks need are refused (seccomp).
"""

MEASURES: Final[tuple[MeasureName, ...]] = (
    *("no_new_privs", "limits", "files"),
    *("signals", "network", "system_calls"),
)

SandboxMode = Literal["auto", "off", "required"]
"""``auto`` takes the measures that the machine offers, ``required`` fails if one is missing."""

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_CAPABILITY_VERSION = 0x20080522  # linux/capability.h
# DAC_READ_SEARCH, SYS_NICE: a daemon of root may read the files of others.
_KEPT_CAPABILITIES = 1 << 2 | 1 << 23
_DAC_OVERRIDE = 1 << 1


@dataclass(frozen=True)
class Files:
    """Paths that can be opened; a folder stands for everything below it.

    Attributes:
        read: files that are read, and folders that are listed.
        execute: that are read and run as programs as well.
        write: that are read, changed, created and deleted.
        list: folders of which only the names are read.
    """

    read: tuple[Path, ...] = ()
    execute: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    list: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Sandbox:
    """What a process may do.

    Attributes:
        files: None = as its user may.
        sockets: may open and connect sockets. Those that are open stay usable in any case.
        execute: may start other programs.
        fork: may start processes.
        attributes: may change mode, owner and times of files.
        capabilities: keeps those of root.
        overrides: as root, may write files that belong to others.
        filter: refuse system calls; without it, the four above are allowed.
        limits: highest values by name in ``resource``, such as "RLIMIT_NOFILE"; a lower one stays.
        reasons: why a measure is not wanted, for the report.
    """

    files: Files | None = None
    sockets: bool = False
    execute: bool = False
    fork: bool = False
    attributes: bool = False
    capabilities: bool = False
    overrides: bool = False
    filter: bool = True
    limits: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[MeasureName, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """One measure, and whether it holds.

    Attributes:
        name: one of ``MEASURES``.
        active: it holds.
        detail: how, or why not.
        wanted: False = it does not suit this process.
    """

    name: str
    active: bool
    detail: str = ""
    wanted: bool = True

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" if self.detail else self.name


@dataclass(frozen=True)
class SandboxReport:
    """What :func:`apply` has done."""

    measures: tuple[Measure, ...] = ()

    @property
    def missing(self) -> tuple[Measure, ...]:
        """Those that were wanted and do not hold."""
        return tuple(one for one in self.measures if one.wanted and not one.active)

    def active(self, name: MeasureName) -> bool:
        """Whether a measure holds."""
        return any(one.name == name and one.active for one in self.measures)


def apply(sandbox: Sandbox) -> SandboxReport:
    """Restricts this process for the rest of its life. Never fails: see the report.

    It must be called before there are other threads: Landlock holds for the calling thread and
    what it starts. The rest holds for all threads.
    """
    found = {
        "no_new_privs": _attempt("no_new_privs", lambda: _set_no_new_privs(sandbox)),
        "limits": _set_limits(sandbox.limits),
    }
    found.update(_restrict_files(sandbox))
    found.update(_filter_calls(sandbox))
    return SandboxReport(
        tuple(_explained(found[name], sandbox.reasons.get(name, "")) for name in MEASURES)
    )


def forbid_new_memory_files() -> None:
    """Forbids this process to make files in memory; called once it has those that it needs.

    What is written to them counts against no limit of the process, not even once it is unmapped.
    Where there are no filters, which the report of :func:`apply` says, nothing happens.
    """
    with suppress(OSError):
        seccomp.install(seccomp.MemoryFileFilter())


def probe() -> SandboxReport:
    """What this machine offers. Changes nothing."""
    found = [Measure("no_new_privs", sys.platform.startswith("linux"), "Linux 3.5 or newer")]
    found.append(Measure("limits", True))
    try:
        version = landlock.abi()
    except OSError as error:
        why = landlock.explain(error)
        found += [Measure("files", False, why), Measure("signals", False, why)]
    else:
        found += _landlock_measures(version)
    try:
        seccomp.check()
    except OSError as error:
        why = seccomp.explain(error)
        found += [Measure("network", False, why), Measure("system_calls", False, why)]
    else:
        found += [Measure("network", True, "seccomp"), Measure("system_calls", True, "seccomp")]
    return SandboxReport(tuple(found))


def _set_no_new_privs(sandbox: Sandbox) -> str:
    if not sys.platform.startswith("linux"):
        raise OSError(0, "a part of Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) != 0:
        raise OSError(ctypes.get_errno(), "refused by the kernel")
    if not sandbox.capabilities:
        _drop_capabilities(libc, _KEPT_CAPABILITIES | _DAC_OVERRIDE * sandbox.overrides)
    return ""


def _drop_capabilities(libc: ctypes.CDLL, allowed: int) -> None:
    """Keeps a process of root from what only root may do, such as reading the kernel's memory."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    # Effective, permitted and inheritable ones, 32 at a time.
    held = (ctypes.c_uint32 * 6)()
    if libc.capget(header, held) != 0:
        raise OSError(ctypes.get_errno(), "its capabilities cannot be read")
    kept = [value & allowed if index < 3 else 0 for index, value in enumerate(held)]
    if kept != list(held) and libc.capset(header, (ctypes.c_uint32 * 6)(*kept)) != 0:
        raise OSError(ctypes.get_errno(), "its capabilities cannot be dropped")


def _attempt(name: MeasureName, take: Callable[[], str]) -> Measure:
    try:
        return Measure(name, True, take())
    except OSError as error:
        return Measure(name, False, str(error.strerror))


def _set_limits(limits: Mapping[str, int]) -> Measure:
    import resource

    failed = []
    for name, value in limits.items():
        number = getattr(resource, name, None)
        if number is None:  # not on this system
            continue
        _, hard = resource.getrlimit(number)
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(number, (lower, lower))
        except (OSError, ValueError) as error:
            failed.append(f"{name}: {error}")
    return Measure("limits", not failed, "; ".join(failed))


def _restrict_files(sandbox: Sandbox) -> dict[str, Measure]:
    if sandbox.files is None:
        return {
            name: Measure(name, False, "not applied", wanted=False) for name in ("files", "signals")
        }
    try:
        version = landlock.restrict(list(_rules(sandbox.files)), tcp=sandbox.sockets, devices=False)
    except OSError as error:
        why = landlock.explain(error)
        return {name: Measure(name, False, why) for name in ("files", "signals")}
    return {one.name: one for one in _landlock_measures(version)}


def _rules(files: Files) -> Iterable[landlock.Rule]:
    for paths, rights in (
        (files.read, landlock.READ),
        (files.execute, landlock.RUN),
        (files.write, landlock.WRITE),
        (files.list, landlock.LIST),
    ):
        for path in paths:
            yield landlock.Rule(path, rights)


def _landlock_measures(version: int) -> list[Measure]:
    text = f"Landlock, version {version}"
    if version >= landlock.SIGNALS_ABI:
        return [Measure("files", True, text), Measure("signals", True, text)]
    why = f"Landlock has version {version}; {landlock.SIGNALS_ABI} or newer (Linux 6.12) is needed"
    return [Measure("files", True, text), Measure("signals", False, why)]


def _filter_calls(sandbox: Sandbox) -> dict[str, Measure]:
    if not sandbox.filter:
        return {
            name: Measure(name, False, "not applied", wanted=False)
            for name in ("network", "system_calls")
        }
    calls = _install(
        seccomp.Filter(
            execute=sandbox.execute,
            fork=sandbox.fork,
            sockets=sandbox.sockets,
            attributes=sandbox.attributes,
        )
    )
    network = Measure("network", calls.active, calls.detail)
    if sandbox.sockets:
        network = Measure("network", False, "not applied", wanted=False)
    return {"system_calls": calls, "network": network}


def _install(wanted: seccomp.Filter) -> Measure:
    try:
        seccomp.install(wanted)
    except OSError as error:
        return Measure("system_calls", False, seccomp.explain(error))
    return Measure("system_calls", True, "seccomp")


def _explained(measure: Measure, reason: str) -> Measure:
    if measure.wanted or not reason:
        return measure
    return Measure(measure.name, measure.active, reason, measure.wanted)
