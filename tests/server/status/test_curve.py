"""Loss curves from the event log of a job."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

from multigrain_server.status.chart import chart, sparkline
from multigrain_server.status.event_log import POINTS, CurvePoint, Curves, Evaluations
from tests.server.status.documents import Document
from tests.server.status.records import line, loss, write


def _bytes_read() -> int:
    fields = dict(row.split(": ") for row in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_short_log_gives_every_point(tmp_path: Path) -> None:
    lines = [line(n, loss=loss(n, 1 / n, instance_loss=0.25 / n)) for n in range(1, 51)]
    path = write(tmp_path / "events", line(51, state={"state": "RUNNING"}), *lines)
    points = Curves().of(path)
    assert [point.step for point in points] == list(range(1, 51))
    assert points[9] == CurvePoint(1, 10, 0.1, 0.1, 0.025, 0.1, 1)


def test_long_log_costs_a_bounded_number_of_reads(tmp_path: Path) -> None:
    text = "x" * 3000
    lines = [
        line(n, loss=loss(n, n)) if n % 10 else line(n, log={"level": "INFO", "message": text})
        for n in range(1, 20_000)
    ]
    path = write(tmp_path / "events", *lines)
    size = path.stat().st_size
    before = _bytes_read()
    points = Curves().of(path)
    assert _bytes_read() - before < 1 << 20 < size / 8
    assert POINTS / 3 < len(points) <= POINTS
    steps = [point.step for point in points]
    assert steps == sorted(set(steps))
    assert steps[0] < 50
    assert steps[-1] == 19_999
    assert max(after - before for before, after in pairwise(steps)) < 2_000


def test_repeated_steps_come_from_the_latest_attempt(tmp_path: Path) -> None:
    first = [line(n, 1, loss=loss(n, 1.0)) for n in range(1, 11)]
    second = [line(n + 5, 2, loss=loss(n, 2.0)) for n in range(6, 9)]
    points = Curves().of(write(tmp_path / "events", *first, *second))
    assert [(p.attempt, p.step, p.loss) for p in points] == [
        *((1, step, 1.0) for step in range(1, 6)),
        *((2, step, 2.0) for step in range(6, 9)),
    ]
    assert chart(points).count("attempt 2") == 1


def test_damaged_and_incomplete_lines_are_skipped(tmp_path: Path) -> None:
    good = line(1, loss=loss(1))
    damaged = line(2, loss=loss(2)).replace('"epoch":1', '"epoch":')
    strange = line(3, loss={"step": 3})
    path = write(tmp_path / "events", good, damaged, strange, line(4, loss=loss(4)).rstrip("\n"))
    assert [point.step for point in Curves().of(path)] == [1]


def test_curve_grows_with_the_log(tmp_path: Path) -> None:
    curves = Curves()
    assert curves.of(tmp_path / "events") == ()
    path = write(tmp_path / "events", line(1, loss=loss(1)))
    assert len(curves.of(path)) == 1
    with path.open("a") as file:
        file.write(line(2, loss=loss(2)))
    assert len(curves.of(path)) == 2


def test_step_without_loss_is_a_gap(tmp_path: Path) -> None:
    losses = [1.0, 0.9, "NaN", 0.7, "Infinity", 0.5]
    lines = [line(n, loss=loss(n, value)) for n, value in enumerate(losses, 1)]
    points = Curves().of(write(tmp_path / "events", *lines))
    assert math.isnan(points[2].loss)
    (path,) = (e for e in Document(sparkline(points)).of("path"))
    assert (path.attributes["d"] or "").count("M") == 3


def test_fewer_than_two_points_are_not_drawn() -> None:
    assert chart([]) == sparkline([]) == ""
    alone = [CurvePoint(1, 1, 1.0, 1.0, 1.0), CurvePoint(1, 2, math.nan, 1.0, 1.0)]
    assert chart(alone) == sparkline(alone) == ""


def test_flat_and_enormous_curves_stay_in_their_frame() -> None:
    for values in (
        [2.0, 2.0, 2.0],
        [0.0, 0.0],
        [1e-12, 1e12],
        [-5.0, 3.0],
        [1e308, 3.0, 2.0],
        [1e20, 1e20 + 1e5],
    ):
        points = [CurvePoint(1, n, v, v, v) for n, v in enumerate(values)]
        for path in Document(chart(points)).of("path"):
            numbers = (path.attributes["d"] or "").replace("M", " ").replace("L", " ").split()
            assert all(0 <= float(number) <= 640 for number in numbers), values


def test_evaluations_are_read_once_and_the_newest_of_a_step_counts(tmp_path: Path) -> None:
    def evaluation(seq: int, step: int, top1: float) -> str:
        return line(seq, evaluation={"metrics": {"top1": top1}, "step": step, "epoch": step})

    path = write(
        tmp_path / "events",
        evaluation(1, 10, 0.1),
        *(line(n, loss=loss(n)) for n in range(2, 3000)),
        evaluation(3000, 20, 0.2),
        evaluation(3001, 30, 0.3),
    )
    evaluations = Evaluations()

    def found() -> list[tuple[int, float]]:
        return [(record.step, record.metrics["top1"]) for record in evaluations.of(path)]

    assert found() == [(10, 0.1), (20, 0.2), (30, 0.3)]
    before = _bytes_read()
    assert len(found()) == 3
    assert _bytes_read() - before < 10_000
    with path.open("a") as log:
        # A later attempt repeats the steps from 20 on; its line is not complete yet.
        log.write(evaluation(3002, 20, 0.25)[:-5])
    assert len(found()) == 3
    with path.open("a") as log:
        log.write(evaluation(3002, 20, 0.25)[-5:])
    assert found() == [(10, 0.1), (20, 0.25)]
    assert Evaluations().of(tmp_path / "none") == ()
