"""The processes that benchmarks let take turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.contestant import Contestant, median_ms

PROGRAM = """
from benchmarks.contestant import Turn, peak_mib, serve

def take(steps, parts):
    if steps > 9:
        raise SystemExit(3)
    return Turn([0.25] * steps, peak_mib=peak_mib(), parts={"all": 0.25} if parts else {})

print("what a library says at its import")
serve(take)
"""


@pytest.fixture
def contestant(tmp_path: Path) -> Contestant:
    (tmp_path / "turns_program.py").write_text(PROGRAM)
    root = Path(__file__).parents[2]
    return Contestant("turns_program", environment={"PYTHONPATH": f"{root}:{tmp_path}"})


def test_a_contestant_takes_the_steps_it_is_asked_for_and_waits_between_turns(
    contestant: Contestant,
) -> None:
    with contestant:
        first, second = contestant.turn(2), contestant.turn(3, parts=True)
    assert first.seconds == [0.25] * 2
    assert second.seconds == [0.25] * 3
    assert second.parts == {"all": 0.25}
    assert first.peak_mib > 1


def test_a_contestant_that_ends_is_named_with_its_status(contestant: Contestant) -> None:
    with contestant, pytest.raises(RuntimeError, match="turns_program ended with status 3"):
        contestant.turn(10)


def test_the_median_is_given_in_milliseconds() -> None:
    assert median_ms([0.004, 0.001, 0.002]) == 2.0
