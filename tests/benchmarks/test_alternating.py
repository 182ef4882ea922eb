"""Benchmark programs that run alternately."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.alternating import BenchmarkProcess, median_ms

PROGRAM = """
from benchmarks.alternating import Measurement, peak_mib, serve

def take(steps, parts):
    if steps > 9:
        raise SystemExit(3)
    return Measurement([0.25] * steps, peak_mib=peak_mib(), parts={"all": 0.25} if parts else {})

print("output of a library")
serve(take)
"""


@pytest.fixture
def program(tmp_path: Path) -> BenchmarkProcess:
    (tmp_path / "timed_program.py").write_text(PROGRAM)
    root = Path(__file__).parents[2]
    return BenchmarkProcess("timed_program", environment={"PYTHONPATH": f"{root}:{tmp_path}"})


def test_a_program_runs_the_requested_steps(
    program: BenchmarkProcess,
) -> None:
    with program:
        first, second = program.measure(2), program.measure(3, parts=True)
    assert first.seconds == [0.25] * 2
    assert second.seconds == [0.25] * 3
    assert second.parts == {"all": 0.25}
    assert first.peak_mib > 1


def test_a_program_that_exits_is_an_error_with_its_code(program: BenchmarkProcess) -> None:
    with program, pytest.raises(RuntimeError, match="timed_program exited with code 3"):
        program.measure(10)


def test_median_is_in_milliseconds() -> None:
    assert median_ms([0.004, 0.001, 0.002]) == 2.0
