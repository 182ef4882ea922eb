"""Out-of-memory errors are recognized alike by engines and jobs, and freed memory goes back."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multigrain.jobs import attempt
from multigrain.jobs.failure import describe_exception
from multigrain.jobs.ipc import Exit
from multigrain.jobs.launchers import LaunchPlan
from multigrain.memory import (
    EXIT_OUT_OF_MEMORY,
    OomWatch,
    exit_if_memory_exhausted,
    exit_if_out_of_memory,
    is_out_of_memory,
)
from multigrain.specs.base import DeviceSpec
from multigrain_server.engines.launch import describe_exit

# As the runtimes print them.
OUT_OF_MEMORY = [
    # MindSpore
    "Device(id:0) memory isn't enough and alloc failed, kernel name: 0_Default/Conv2D-op1, "
    "alloc size: 65273856B.",
    "\n----\n- Memory not enough:\n----\nMemory isn't enough and alloc failed, kernel name: 69, "
    "alloc size: 65273856B.",
    "Malloc device memory failed, size[1073741824], ret[207001], Device 0 Available HBM size:1024.",
    "Out of Memory!!! Request memory size: 10737418240B, Memory Statistic:",
    # ONNX Runtime
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: "
    "bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 2684354560",
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv "
    "node. Status Message: bfc_arena.cc:376 Available memory of 0 is smaller than requested bytes "
    "of 135383040",
    "[ONNXRuntimeError] : 1 : FAIL : bad allocation",
    "CUDA failure 2: out of memory ; GPU=0 ; hostname=node ; expr=cudaMalloc((void**)&p, size);",
    # OpenVINO
    "Exception from src/inference/src/cpp/infer_request.cpp:223:\nstd::bad_alloc\n",
    "Exception from src/plugins/intel_cpu: could not execute a primitive: out_of_memory",
    "[GPU] clEnqueueMapBuffer, error code: -6 CL_OUT_OF_HOST_MEMORY",
    # CUDA and its libraries
    "torch.OutOfMemoryError",
    "CUDA error: out of memory",
    "cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
    "CUDNN failure 2: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    # Ascend
    "alloc memory failed, ret:507899",
    "call aclnnMatmul failed, error code is 207001",
    "EL0004: Failed to allocate memory.\nPossible Cause: Available memory is insufficient.",
    "Failed to allocate resource[DeviceMemory]. Reason: Memory resources are exhausted.",
    "aclrtMalloc failed: ACL_ERROR_RT_MEMORY_ALLOCATION",
    "open device 2 failed, Memory_Allocation_Failure(EL0004)",
    "ACL_ERROR_BAD_ALLOC",
    # libc, NumPy, PIL
    "Cannot allocate memory",
    "Memory allocation failed. Size=1073741824",
    "MemoryError",
    "Unable to allocate 3.20 GiB for an array with shape (29309, 29309) and data type float32",
    "out of memory when reading image file",
]
OTHER = [
    "",
    "unsupported memory format torch.channels_last",
    "not enough disk space: 10 GiB needed",
    "No space left on device",
    "CUDA error: an illegal memory access was encountered",
    "libgomp.so.1: cannot allocate memory in static TLS block",
    "the image is truncated",
    "the connection was lost",
    "bad magic number in header",
    "the tensor 2070012 has no memory info",
    "failed to open shared memory file",
]
PROGRAM = """
import resource
from multigrain.memory import exit_if_memory_exhausted, exit_if_out_of_memory
{setup}
try:
    {action}
except Exception as error:
    {check}(error)
print("continues")
"""
NO_MEMORY = "resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))"


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes of the processes that would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def counts(error: Exception, exits: list[int]) -> tuple[bool, bool]:
    """Whether an engine exits of the error, and whether a job reports it as out of memory."""
    exit_if_out_of_memory(error)
    return exits == [EXIT_OUT_OF_MEMORY], "or more memory)" in describe_exception(error)


@pytest.mark.parametrize("text", OUT_OF_MEMORY)
def test_the_texts_of_all_runtimes_count_for_engines_and_jobs(text: str, exits: list[int]) -> None:
    assert counts(RuntimeError(text), exits) == (True, True)


def test_a_path_in_an_error_of_the_system_does_not_count(exits: list[int]) -> None:
    error = FileNotFoundError(
        errno.ENOENT, "No such file or directory", "/data/out of memory/1.png"
    )
    assert counts(error, exits) == (False, False)


def raised_from(cause: BaseException) -> Exception:
    error = ValueError("the batch failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        OSError(errno.ENOMEM, "Speicher reicht nicht"),
        raised_from(MemoryError()),
        raised_from(OSError(errno.ENOMEM, "")),
        raised_from(raised_from(RuntimeError("std::bad_alloc"))),
    ],
)
def test_python_errors_and_what_was_raised_from_them_count(
    error: Exception, exits: list[int]
) -> None:
    assert counts(error, exits) == (True, True)


@pytest.mark.parametrize("text", OTHER)
def test_other_texts_do_not_count(text: str, exits: list[int]) -> None:
    assert counts(RuntimeError(text), exits) == (False, False)
    assert counts(raised_from(ValueError(text)), exits) == (False, False)


def test_errors_that_cause_each_other_end_the_search() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert not is_out_of_memory(one)


def run(setup: str, action: str, check: str) -> tuple[int, str]:
    program = PROGRAM.format(setup=setup, action=action, check=check)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("action", ["raise MemoryError", "raise RuntimeError('std::bad_alloc')"])
def test_a_network_without_memory_ends_the_engine(action: str) -> None:
    assert run("", action, "exit_if_out_of_memory") == (EXIT_OUT_OF_MEMORY, "")
    assert describe_exit(EXIT_OUT_OF_MEMORY) == "out of memory"


def test_a_decoder_without_memory_ends_the_engine_if_there_is_none() -> None:
    check = "exit_if_memory_exhausted"
    assert run(NO_MEMORY, "bytearray(1 << 26)", check)[0] == EXIT_OUT_OF_MEMORY
    wrapped = "raise ValueError('too large') from MemoryError()"
    assert run(NO_MEMORY, wrapped, check)[0] == EXIT_OUT_OF_MEMORY


def test_a_file_that_needs_too_much_does_not_end_an_engine_that_has_memory() -> None:
    exit_if_memory_exhausted(MemoryError())
    exit_if_memory_exhausted(OSError("out of memory when reading image file"))


def test_freed_memory_below_a_block_in_use_goes_back_to_the_system() -> None:
    # Blocks that the C library takes from its heap, and one above them that keeps the heap's end.
    program = """
import psutil
from multigrain.memory import release_freed_memory

blocks = [bytes(b"x") * 100_000 for _ in range(2_000)]
last = bytes(b"y") * 100_000
blocks.clear()
held = psutil.Process().memory_info().rss
release_freed_memory()
print(held - psutil.Process().memory_info().rss)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 100e6


V1 = ("4:memory:/a\n", "33 31 0:30 / /cg rw - cgroup cgroup rw,memory\n", "memory.oom_control")
V2 = ("0::/a\n", "33 31 0:30 / /cg rw - cgroup2 cgroup2 rw\n", "memory.events")
# The counts of the cgroup and of the machine, at the start and at the end.
KILLED = [
    ((2, 2), (7, 7), False),
    ((2, 3), (7, 8), True),
    ((2, 3), (None, None), True),
    # In another container, or in the cgroup that the process was moved to.
    ((2, 2), (7, 8), None),
    # The root of version 2, or an old kernel, has no count of the cgroup.
    ((None, None), (7, 7), False),
    ((None, None), (7, 8), True),
    ((None, None), (None, None), None),
    # The cgroup is gone.
    ((2, None), (7, 8), True),
]


@pytest.mark.parametrize("version", [V1, V2])
@pytest.mark.parametrize(("cgroup", "everywhere", "killed"), KILLED)
def test_the_kernels_counts_of_oom_kills_tell_whether_it_killed(
    tmp_path: Path,
    version: tuple[str, str, str],
    cgroup: tuple[int | None, int | None],
    everywhere: tuple[int | None, int | None],
    killed: bool | None,
) -> None:
    path, mounts, name = version
    proc = tmp_path / "proc/self"
    proc.mkdir(parents=True)
    (tmp_path / "cg/a").mkdir(parents=True)
    (proc / "cgroup").write_text(path)
    (proc / "mountinfo").write_text(mounts)

    def count(file: Path, kills: int | None) -> None:
        line = "" if kills is None else f"oom_kill {kills}\n"
        file.write_text(f"pgfault 123\n{line}oom_kill_other 9\n")

    count(tmp_path / "cg/a" / name, cgroup[0])
    count(tmp_path / "proc/vmstat", everywhere[0])
    watch = OomWatch(root=tmp_path)
    count(tmp_path / "cg/a" / name, cgroup[1])
    count(tmp_path / "proc/vmstat", everywhere[1])
    assert watch.killed() is killed


def test_a_machine_without_counts_does_not_know(tmp_path: Path) -> None:
    assert OomWatch(root=tmp_path).killed() is None


@pytest.mark.parametrize(
    ("killed", "text"),
    [
        (False, "from outside"),
        (True, "by the kernel: the machine or its container ran out of memory"),
        (None, "usually because the machine ran out of memory"),
    ],
)
def test_only_a_kill_counted_since_the_attempt_began_is_attributed_to_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool | None, text: str
) -> None:
    monkeypatch.setattr(OomWatch, "killed", lambda _: killed)
    plan = LaunchPlan(processes=(), worker_logs=(tmp_path / "0.log",), scheduler_log=None)
    workers = attempt.Ranks(1, DeviceSpec(), plan, "lower batch_size")
    workers.workers[0].on_guard_message(Exit(137, signal.SIGKILL))
    failure = workers.find_failure(0.0)
    assert failure is not None
    assert failure.out_of_memory is bool(killed)
    assert text in failure.error.message
    assert ("lower batch_size" in failure.error.message) is (killed is not False)
