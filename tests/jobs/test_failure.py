"""Descriptions of failures."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from multigrain.errors import ErrorKind
from multigrain.jobs.failure import (
    LOG_TAIL_BYTES,
    MAX_LENGTH,
    cluster_timeout,
    describe_exception,
    log_tail,
    memory_advice,
    process_ended,
    runner_lost,
    stalled,
    work_failed,
    worker_died,
)
from multigrain.jobs.ipc import SCHEDULER_RANK, Exit, Failed
from multigrain.jobs.job_request import JobKind, JobRequest
from multigrain.machine import Memory
from multigrain.specs.training import ModelSpec, ScheduleSpec

# As MindSpore 2.8 raises it.
NO_MEMORY = """
----------------------------------------------------
- Memory not enough:
----------------------------------------------------
Memory isn't enough and alloc failed, kernel name: 69_Default/Div-op0, alloc size: 65273856B.

----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
mindspore/ccsrc/backend/ms_backend/runtime/graph_scheduler/base/graph_scheduler.cc:1168 Run
"""


def test_a_short_log_is_returned_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo")
    assert log_tail(path) == "one\ntwo"


def test_the_tail_of_a_long_log_is_limited_and_starts_with_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {i} ü\n" for i in range(5000)))
    tail = log_tail(path)
    assert LOG_TAIL_BYTES - 20 < len(tail.encode()) <= LOG_TAIL_BYTES
    assert tail.startswith("line ")
    assert tail.endswith("line 4999 ü\n")


def test_a_log_of_one_long_line_or_of_binary_data_is_handled(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\xff\x00" * 20_000)
    assert 0 < len(log_tail(path).encode()) <= LOG_TAIL_BYTES


def test_warnings_of_mindspore_do_not_hide_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "log"
    warning = b"[WARNING] DISTRIBUTED(4942,7f08,python):2026-11-24 [tcp_comm.cc:485] 12\n"
    path.write_bytes(b"ValueError: the cause\n" + 900 * warning)
    assert log_tail(path) == "ValueError: the cause\n"
    path.write_bytes(900 * warning)
    assert log_tail(path).startswith("[WARNING] DISTRIBUTED")


def test_a_missing_log_has_no_tail(tmp_path: Path) -> None:
    assert log_tail(tmp_path / "log") == ""
    assert log_tail(None) == ""


def test_a_kill_by_the_oom_killer_is_distinguished_from_other_kills() -> None:
    killed = worker_died(3, Exit(137, signal.SIGKILL), None, oom_killer=True)
    assert killed.out_of_memory
    assert killed.retryable
    assert killed.error.message.startswith("rank 3 was killed by SIGKILL (signal 9), by the kernel")
    limited = worker_died(
        3, Exit(137, signal.SIGKILL), None, oom_killer=True, memory=Memory(24 << 30, 1 << 30)
    )
    assert "its cgroup may use 1 GiB of the machine's 24 GiB" in limited.error.message
    assert "batch_size" in killed.error.message
    # It killed another process meanwhile.
    assert not worker_died(3, Exit(139, signal.SIGSEGV), None, oom_killer=True).out_of_memory
    assert not worker_died(3, Exit(137, signal.SIGKILL), None).out_of_memory


def request(kind: JobKind, **spec: object) -> JobRequest:
    return JobRequest.model_validate(
        {"job_id": "j", "kind": kind, "create_time": "", kind.lower(): spec}
    )


WHITENED = {"whitening_path": "/data"}
QUANTIZED = {"int8_path": "/data"}
TWO_HEADS = {"resolutions": [{"resolution": 128}, {"resolution": 224}]}


@pytest.mark.parametrize(
    ("request_", "advice"),
    [
        (
            request(JobKind.TRAINING),
            "use a smaller schedule.batch_size or model.image_size, fewer workers, or more memory",
        ),
        (
            request(JobKind.EVALUATION),
            "use a smaller batch_size or resolution, or more memory",
        ),
        (
            request(JobKind.EVALUATION, devices={"count": 2}),
            "use a smaller batch_size or resolution, fewer workers, or more memory",
        ),
        (request(JobKind.EXPORT), "lower resolution, or use more memory"),
        (request(JobKind.EXPORT, **TWO_HEADS), "lower resolutions, or use more memory"),
        (
            request(JobKind.EXPORT, **WHITENED),
            "lower resolution or whitening_images, or use more memory",
        ),
        (
            request(JobKind.EXPORT, **WHITENED, **QUANTIZED),
            "lower resolution or whitening_images or int8_images, or use more memory",
        ),
    ],
)
def test_advice_about_memory_names_fields_of_the_job(request_: JobRequest, advice: str) -> None:
    """Each is a field of the specification that the user has submitted."""
    said = memory_advice(request_)
    assert said == advice
    for name in re.findall(r"\w+_\w+|resolutions?", said):
        fields = {*type(request_.spec).model_fields, *ScheduleSpec.model_fields}
        assert name in fields | {*ModelSpec.model_fields}
    killed = worker_died(0, Exit(137, signal.SIGKILL), None, oom_killer=True, advice=said)
    assert killed.error.message.endswith(said)
    assert describe_exception(MemoryError(), said) == f"MemoryError ({said})"


def test_a_signal_is_named_with_advice() -> None:
    failure = worker_died(3, Exit(137, signal.SIGKILL), None)
    assert failure.error.message.startswith("rank 3 was killed by SIGKILL (signal 9): ")
    assert "batch_size" in failure.error.message
    assert (failure.error.rank, failure.error.signal, failure.exit_code) == (3, 9, 137)
    assert failure.error.exit_code is None  # it did not exit by itself
    assert failure.retryable


def test_what_another_attempt_may_not_have_is_retried() -> None:
    assert cluster_timeout([1], 2, 60.0, None).retryable
    assert stalled(0, 60.0, None, suspended=False, stepped=True).retryable
    assert runner_lost(1).retryable
    assert work_failed(0, Failed(ErrorKind.UNAVAILABLE.name, "not now"), None).retryable
    for kind in (ErrorKind.DATASET, ErrorKind.DIVERGED, ErrorKind.INVALID_FIELD, ErrorKind.STORAGE):
        assert not work_failed(0, Failed(kind.name, "it would recur"), None).retryable


def test_an_unusual_signal_is_named_too() -> None:
    realtime = 40
    assert "signal 40" in worker_died(0, Exit(168, realtime), None).error.message


def test_the_scheduler_has_no_rank() -> None:
    failure = worker_died(SCHEDULER_RANK, Exit(1), None)
    assert failure.error.rank is None
    assert failure.error.message.startswith("the cluster's scheduler exited with code 1")


def test_the_signal_that_killed_an_unreported_process_is_named(tmp_path: Path) -> None:
    assert "SIGKILL (signal 9)" in process_ended(-9, tmp_path / "log").error.message


def test_a_framed_message_is_described_by_its_text_with_advice_about_memory() -> None:
    said = describe_exception(RuntimeError(NO_MEMORY))
    assert said.startswith("RuntimeError: Memory isn't enough and alloc failed, kernel name: 69_")
    assert "use a smaller schedule.batch_size" in said
    assert "\n" not in said
    assert describe_exception(MemoryError()).startswith("MemoryError (use a smaller")


def test_a_plain_message_is_described_by_its_first_line() -> None:
    assert describe_exception(ValueError("one\ntwo")) == "ValueError: one"
    assert describe_exception(KeyError()) == "KeyError"
    assert describe_exception(ValueError("x" * 9000)) == "ValueError: " + "x" * MAX_LENGTH


def test_a_message_of_headings_only_is_described_by_the_first() -> None:
    text = "\n-----\n- Memory pool: \n-----\n- C++ Call Stack: (For framework developers)\n"
    assert describe_exception(RuntimeError(text)) == "RuntimeError: Memory pool:"
