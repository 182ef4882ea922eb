"""Cores, memory, devices, limits, disk, clock."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from multigrain_server.config import ServerConfig
from multigrain_server.data_dir import check_access
from multigrain_server.devices import Inventory
from multigrain_server.doctor.finding import Finding, fail, ok, warn

GIB = 1 << 30
# Descriptors: a connection, an event stream and an engine's socket take one each.
_FEW_FILES = 4096
_FREE_FAIL, _FREE_WARN = GIB, 0.1
# A checkpoint is fsynced; a disk that takes longer than this holds up every save and event.
_SLOW_FSYNC = 0.1
_CLOCK_SECONDS = 2.0
_LISTINGS = {"gpu": ("nvidia-smi", "--list-gpus"), "ascend": ("npu-smi", "info", "-l")}
_FAST_BFLOAT16 = ("amx_bf16", "avx512_bf16")


def cpu() -> Iterator[Finding]:
    """Cores, memory, and the instructions that make serving fast."""
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory()
    yield ok("cpu", f"{cores} cores, {memory.total / GIB:.0f} GiB of memory")
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return
    found = [name for name in _FAST_BFLOAT16 if name in flags]
    how = f"bfloat16 ({', '.join(found)})" if found else "float32: the CPU has no bfloat16"
    yield ok("cpu serving", how)


def missing_at_start(config: ServerConfig) -> Iterator[Finding]:
    """What a starting daemon warns of, found without a pause: folders and drivers that are not
    there (yet: a disk may be mounted later)."""
    yield from (finding for finding in roots(config) if finding.fix)
    yield from drivers(config)


def drivers(config: ServerConfig) -> Iterator[Finding]:
    """Devices that jobs may use and whose driver is not installed."""
    inventory = Inventory.parse(config.devices)
    for kind, (tool, *_) in _LISTINGS.items():
        wanted = inventory.units(kind)
        if wanted and shutil.which(tool) is None:
            yield fail(
                f"devices: {kind}",
                f"{len(wanted)} are configured and {tool} is not found",
                f"install the driver, or take {kind} out of --devices",
            )


def devices(config: ServerConfig) -> Iterator[Finding]:
    """Whether the devices are there that jobs may use."""
    inventory = Inventory.parse(config.devices)
    yield ok("devices", f"jobs may use {inventory}")
    yield from drivers(config)
    for kind, listing in _LISTINGS.items():
        wanted, tool = inventory.units(kind), listing[0]
        if not wanted or shutil.which(tool) is None:
            continue
        done = subprocess.run(listing, capture_output=True, text=True, timeout=60)
        there = sum(
            line.startswith("GPU ") or "NPU ID" in line for line in done.stdout.splitlines()
        )
        missing = [index for index in wanted if index >= there]
        if missing:
            yield fail(
                f"devices: {kind}",
                f"{tool} lists {there}, so that {missing} cannot be used",
                f"correct --devices, or ask {tool} why they are missing",
            )
        else:
            yield ok(f"devices: {kind}", f"{there} found, {len(wanted)} for jobs")


def limits() -> Iterator[Finding]:
    """Open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FEW_FILES:
        yield warn(
            "open files",
            f"at most {soft}: about {soft // 2} connections and event streams",
            f"ulimit -n {_FEW_FILES} (LimitNOFILE= in a systemd unit); the hard limit is {hard}",
        )
    else:
        yield ok("open files", f"at most {soft}")


def disk(config: ServerConfig) -> Iterator[Finding]:
    """Whether the data directory can be written, has room, and is quick to sync."""
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
            f"cannot be written: {error.strerror}: {error.filename or folder}",
            f"chown it to uid {os.geteuid()}",
        )
        return
    usage = shutil.disk_usage(folder)
    room = f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f}"
    if usage.free < _FREE_FAIL:
        yield fail(subject, room, "make room: a checkpoint of ResNet-50 with THOR takes 0.5 GiB")
    elif usage.free < _FREE_WARN * usage.total:
        yield warn(subject, room, "make room, or lower checkpointing.keep")
    else:
        yield ok(subject, f"writable, {room}")
    if seconds > _SLOW_FSYNC:
        yield warn(
            "disk",
            f"{1000 * seconds:.0f} ms to make 4 KiB safe: every event and checkpoint waits for it",
            "put the data directory on a local disk",
        )
    else:
        yield ok("disk", f"{1000 * seconds:.1f} ms to make 4 KiB safe")
    if abs(offset) > _CLOCK_SECONDS:
        yield warn(
            "clock",
            f"the file system is {offset:+.0f} s off this machine's clock",
            "let both follow the same time server: times of events and files would not agree",
        )
    else:
        yield ok("clock", f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC")


def roots(config: ServerConfig) -> Iterator[Finding]:
    """Whether the folders can be read that requests may name."""
    for root in config.data_root:
        if not root.is_dir():
            yield fail(f"data root {root}", "is no folder", "correct --data-root, or mount it")
        elif not os.access(root, os.R_OK | os.X_OK):
            yield fail(f"data root {root}", "cannot be read", f"let uid {os.getuid()} read it")
        else:
            yield ok(f"data root {root}", "readable")
