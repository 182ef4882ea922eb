"""Checks of CPU, devices, limits, disk, clock and data roots."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from multigrain import machine
from multigrain.processes import child_environment, find_program
from multigrain.sandbox.apply import probe
from multigrain_server.config import ServerConfig
from multigrain_server.data_dir import SERVING_STATE, check_access, exposures
from multigrain_server.devices import Inventory
from multigrain_server.doctor.finding import Finding, fail, ok, warn
from multigrain_server.models.state import ServingState

GIB = 1 << 30
# A connection, an event stream and the socket of an engine take a file descriptor each.
_FEW_FILES = 4096
_FREE_FAIL, _FREE_WARN = GIB, 0.1
# Checkpoints and events are fsynced: a slower disk delays every one of them.
_SLOW_FSYNC = 0.1
_CLOCK_SECONDS = 2.0
_LISTINGS = {"gpu": ("nvidia-smi", "--list-gpus"), "ascend": ("npu-smi", "info", "-l")}
_FAST_BFLOAT16 = ("amx_bf16", "avx512_bf16")
# The best set is named: each computes 8 bits, the later ones two to eight times as fast per step.
_INT8 = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8")


def cpu() -> Iterator[Finding]:
    """CPUs and memory with what limits them, and in which precisions the CPU computes fast."""
    yield ok("cpu", f"{machine.cpus()}, {machine.memory()}")
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return
    yield ok("cpu serving", f"{precisions(flags)}; auto measures each model when it is loaded")


def precisions(flags: str) -> str:
    """In which precisions a processor with these flags of /proc/cpuinfo computes fast."""
    found = [name for name in _FAST_BFLOAT16 if name in flags]
    how = f"bfloat16 ({', '.join(found)})" if found else "float32; the CPU has no bfloat16"
    int8 = [name for name in _INT8 if name in flags]
    return how + (f"; 8 bits ({int8[-1]})" if int8 else "; no 8 bits")


def runtimes(config: ServerConfig) -> Iterator[Finding]:
    """Which runtime each loaded model was given, and what was measured to choose it."""
    for row in ServingState.last_loaded(config.data_dir / SERVING_STATE):
        yield ok(f"runtime of {row.version}", row.served or "not loaded yet")


def missing_at_start(config: ServerConfig) -> Iterator[Finding]:
    """Quick checks whose findings a starting daemon logs: permissions, data roots and drivers.

    They are no errors, as a disk may be mounted later.
    """
    yield from permissions(config)
    yield from (finding for finding in roots(config) if finding.fix)
    yield from drivers(config)


def permissions(config: ServerConfig) -> Iterator[Finding]:
    """Whether other users of the machine can read or change the data directory."""
    for problem, fix in exposures(config.data_dir):
        yield warn(f"data directory {config.data_dir}", problem, fix)


def drivers(config: ServerConfig) -> Iterator[Finding]:
    """Whether the drivers of the configured devices are installed."""
    inventory = Inventory.parse(config.devices)
    for kind, (tool, *_) in _LISTINGS.items():
        wanted = inventory.units(kind)
        if wanted and find_program(tool) is None:
            yield fail(
                f"devices: {kind}",
                f"{len(wanted)} configured, but {tool} was not found",
                f"install the driver, or remove {kind} from --devices",
            )


def devices(config: ServerConfig) -> Iterator[Finding]:
    """Whether the configured devices exist."""
    inventory = Inventory.parse(config.devices)
    yield ok("devices", f"configured: {inventory}")
    yield from drivers(config)
    for kind, listing in _LISTINGS.items():
        wanted, tool = inventory.units(kind), listing[0]
        program = find_program(tool)
        if not wanted or program is None:
            continue
        done = subprocess.run(
            [program, *listing[1:]],
            capture_output=True,
            text=True,
            timeout=60,
            env=child_environment(os.environ),
            cwd="/",
        )
        there = sum(
            line.startswith("GPU ") or "NPU ID" in line for line in done.stdout.splitlines()
        )
        missing = [index for index in wanted if index >= there]
        if missing:
            yield fail(
                f"devices: {kind}",
                f"{tool} lists {there}, which does not include {missing}",
                f"correct --devices, or check with {tool} why they are missing",
            )
        else:
            yield ok(f"devices: {kind}", f"{there} found, {len(wanted)} for jobs")


def limits() -> Iterator[Finding]:
    """The limit on open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FEW_FILES:
        yield warn(
            "open files",
            f"at most {soft}, about {soft // 2} connections and event streams",
            f"ulimit -n {_FEW_FILES} (LimitNOFILE= in a systemd unit); the hard limit is {hard}",
        )
    else:
        yield ok("open files", f"at most {soft}")


def sandbox(config: ServerConfig) -> Iterator[Finding]:
    """By which measures engines can be restricted on this machine."""
    serving, subject = config.serving, "sandbox"
    if serving.sandbox == "off":
        yield warn(
            subject,
            "serving.sandbox is off: engines may do what the daemon's user may",
            "set serving.sandbox to auto",
        )
        return
    report = probe()
    active = ", ".join(one.name for one in report.measures if one.active)
    if serving.device != "cpu":
        yield ok(
            subject,
            f"decoding is restricted by {active}; the driver of {serving.device} allows engines "
            "to be restricted by no_new_privs and limits only",
        )
    elif not report.missing:
        yield ok(subject, f"engines are restricted by {active}")
    complain = fail if serving.sandbox == "required" else warn
    for measure in report.missing:
        yield complain(
            subject,
            f"not restricted by {measure}",
            "use Linux 6.12 or newer with Landlock and seccomp on x86-64 or AArch64; the profile "
            "of a container, or SystemCallFilter= of a systemd unit, must allow the calls seccomp "
            "and landlock_*",
        )


def disk(config: ServerConfig) -> Iterator[Finding]:
    """Whether the data directory is writable, has free space and syncs fast, and the clock."""
    folder = config.data_dir
    subject = f"data directory {config.data_dir}"
    try:
        while not folder.exists():
            folder = folder.parent
        check_access(config.data_dir)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
            begun = time.perf_counter()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - begun
            offset = os.fstat(file.fileno()).st_mtime - time.time()
    except OSError as error:
        yield fail(
            subject,
            f"not writable: {error.strerror}: {error.filename or folder}",
            f"chown it to uid {os.geteuid()}",
        )
        return
    usage = shutil.disk_usage(folder)
    room = f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f}"
    if usage.free < _FREE_FAIL:
        yield fail(subject, room, "free space: a checkpoint of ResNet-50 with THOR takes 0.5 GiB")
    elif usage.free < _FREE_WARN * usage.total:
        yield warn(subject, room, "free space, or lower checkpointing.keep")
    else:
        yield ok(subject, f"writable, {room}")
    if seconds > _SLOW_FSYNC:
        yield warn(
            "disk",
            f"{1000 * seconds:.0f} ms to sync 4 KiB, which delays every event and checkpoint",
            "put the data directory on a local disk",
        )
    else:
        yield ok("disk", f"{1000 * seconds:.1f} ms to sync 4 KiB")
    if abs(offset) > _CLOCK_SECONDS:
        yield warn(
            "clock",
            f"the clock of the file system differs by {offset:+.0f} s",
            "use the same time server for both, so that times of events and files agree",
        )
    else:
        yield ok("clock", f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC")


def roots(config: ServerConfig) -> Iterator[Finding]:
    """Whether the data roots are readable."""
    for root in config.data_root:
        if not root.is_dir():
            yield fail(f"data root {root}", "not a folder", "correct --data-root, or mount it")
        elif not os.access(root, os.R_OK | os.X_OK):
            yield fail(f"data root {root}", "not readable", f"let uid {os.getuid()} read it")
        else:
            yield ok(f"data root {root}", "readable")
