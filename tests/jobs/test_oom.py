"""The kernel's count of processes that it killed for want of memory."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from multigrain.jobs import attempt
from multigrain.jobs.ipc import Exit
from multigrain.jobs.launchers import LaunchPlan
from multigrain.memory import oom_kills
from multigrain.specs.base import DeviceSpec


def test_the_count_is_read(tmp_path: Path) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("pgfault 123\noom_kill 7\noom_kill_other 9\n")
    assert oom_kills(counters) == 7


def test_a_kernel_that_does_not_count_or_tell_is_no_error(tmp_path: Path) -> None:
    assert oom_kills(tmp_path / "none") == 0
    counters = tmp_path / "vmstat"
    counters.write_text("pgfault 123\n")
    assert oom_kills(counters) == 0


@pytest.mark.parametrize(("after", "known"), [(7, False), (8, True)])
def test_only_a_kill_that_was_counted_since_the_attempt_began_is_put_down_to_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, known: bool
) -> None:
    counts = iter([7, after])
    monkeypatch.setattr(attempt, "oom_kills", lambda: next(counts))
    plan = LaunchPlan(processes=(), worker_logs=(tmp_path / "0.log",), scheduler_log=None)
    workers = attempt.Ranks(1, DeviceSpec(), plan)
    workers.workers[0].hear_guard(Exit(137, signal.SIGKILL))
    failure = workers.find_failure(0.0)
    assert failure is not None
    assert failure.out_of_memory is known
