"""Stored results: what a file holds, when it is replaced, and how it is shown."""

from __future__ import annotations

import ast
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.index import AREAS, BENCHMARKS
from benchmarks.results import Comparison, Load, Machine, Report, Result
from tools.docs import benchmarks as pages

MACHINE = Machine(processor="Some CPU", instruction_sets=("avx2",), cores=2)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """Of a machine that other programs use as :func:`occupy` says: not at all."""
    occupy(monkeypatch, 0.0)
    monkeypatch.setattr(results, "this_machine", lambda: MACHINE)
    monkeypatch.setattr(results, "_machine_seconds", lambda: 0.0)
    monkeypatch.setattr(results, "_own_seconds", lambda: 0.0)
    return Namespace(results=tmp_path, replace=False)


def occupy(monkeypatch: pytest.MonkeyPatch, cores: float) -> None:
    monkeypatch.setattr(results, "_others", lambda _seconds: cores)


def only(folder: Path) -> Result:
    (result,) = results.stored(folder)
    return result


def test_file_holds_machine_versions_load_and_ratio(options: Namespace) -> None:
    report = Report("wire", options)
    report.compare("encode", [1.0, 3.0, 2.0], over=[2.0, 2.0, 2.0], reference="json", unit="us")
    assert report.finish() == 0
    found = only(options.results)
    assert (found.machine, found.benchmark, found.busy) == (MACHINE, "wire", "")
    assert {"python", "numpy"} <= found.versions.keys()
    assert found.load == Load(cores_before=0.0, load_average=found.load.load_average)  # type: ignore[union-attr]
    (one,) = found.comparisons
    assert (one.measured, one.over, one.ratio, one.reference) == (2.0, 2.0, 1.0, "json")
    assert one.rounds == (1.0, 3.0, 2.0)


def test_ratio_is_the_median_of_the_rounds_and_not_of_the_medians(options: Namespace) -> None:
    """A machine that is slow for one round slows down both sides of that round."""
    report = Report("wire", options)
    found = report.compare("x", [1.0, 10.0, 4.0], over=[2.0, 20.0, 4.0], reference="y")
    assert found.ratio == 0.5


def test_a_ratio_needs_a_named_reference(options: Namespace) -> None:
    with pytest.raises(ValueError, match="name the reference"):
        Report("wire", options).compare("x", 1.0, over=2.0)


@pytest.mark.parametrize(
    ("goal", "code"),
    [({"at_most": 0.5}, 0), ({"at_most": 0.49}, 3), ({"at_least": 0.5}, 0), ({"at_least": 0.6}, 3)],
)
def test_missed_goal_is_the_exit_code(
    options: Namespace, goal: dict[str, float], code: int
) -> None:
    report = Report("wire", options)
    report.compare("x", 1.0, over=2.0, reference="y", **goal)
    assert report.finish() == code
    assert only(options.results).missed == (code != 0)


def test_missed_row_of_a_table_is_the_exit_code(options: Namespace) -> None:
    report = Report("wire", options)
    report.table("t", ("ms",)).row("x", 1.0, reached=False)
    assert report.finish() == results.MISSED


def test_busy_result_is_marked_and_replaces_no_idle_one(
    options: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report("wire", options)
    report.compare("x", 1.0)
    report.finish()
    occupy(monkeypatch, 1.5)
    report = Report("wire", options)
    report.compare("x", 9.0)
    report.finish()
    assert only(options.results).comparisons[0].measured == 1.0
    options.replace = True
    report = Report("wire", options)
    report.compare("x", 9.0)
    report.finish()
    assert only(options.results).comparisons[0].measured == 9.0
    assert only(options.results).busy == "other programs used 1.5 of 2 cores"


def test_load_during_the_run_counts_too(
    options: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report("wire", options)
    monkeypatch.setattr(results, "_machine_seconds", lambda: 1e6)
    report.finish()
    assert only(options.results).busy


def test_result_with_missing_rows_replaces_none_that_has_them(options: Namespace) -> None:
    for cells in (("bf16", 5.4), ("bf16", None)):
        report = Report("wire", options)
        table = report.table("runtimes", ("ms",))
        name, value = cells
        if value is None:
            table.missing(name, "no bfloat16")
        else:
            table.row(name, value)
        report.finish()
    assert only(options.results).tables[0].rows[0].cells == (5.4,)


def test_tables_of_another_width_are_refused(options: Namespace) -> None:
    with pytest.raises(ValueError, match="1 cells, 2 columns"):
        Report("wire", options).table("t", ("a", "b")).row("x", 1)


def test_page_names_the_processor_and_says_what_is_missing(
    options: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    occupy(monkeypatch, 1.5)
    report = Report("wire", options)
    report.compare("x", 3.0, over=2.0, reference="the limit", unit="ms", at_most=1.2)
    report.missing("y", "MindSpore is not installed")
    report.table("Runtimes", ("ms",)).missing("openvino-bf16", "no bfloat16")
    report.finish()
    monkeypatch.setattr(pages, "stored", lambda: results.stored(options.results))
    text = pages.render(BENCHMARKS["wire"])
    for part in (
        "**Some CPU, 2 cores, AVX2** - **busy machine**: other programs used 1.5 of 2 cores",
        "| x<br>goal ≤ 1.2: **missed** | **1.50** = 3.00 / 2.00 ms | the limit |",
        "| y | not measured: MindSpore is not installed |  |",
        "| openvino-bf16 | not measured: no bfloat16 |",
    ):
        assert part in text


def test_every_stored_result_is_of_a_benchmark_and_in_the_folder_of_its_machine() -> None:
    for path in results.FOLDER.glob("*/*.json"):
        result = Result.model_validate_json(path.read_text())
        assert result.benchmark in BENCHMARKS
        assert path.stem == result.benchmark
        assert path.parent.name == result.machine.folder
        assert result.machine.processor
        assert result.machine.cores > 0


def test_every_program_with_results_is_in_the_list_and_every_entry_is_a_program() -> None:
    root = results.ROOT / "benchmarks"
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and "'Report'" in ast.dump(node.func):
                found |= {one.value for one in node.args[:1] if isinstance(one, ast.Constant)}
    assert found <= BENCHMARKS.keys()
    assert {one.area for one in BENCHMARKS.values()} == set(AREAS)
    for one in BENCHMARKS.values():
        assert root.joinpath(*one.name.split(".")).with_suffix(".py").is_file(), one.name


@pytest.mark.parametrize(
    ("value", "text"),
    [(5, "5"), (0.0, "0.00"), (0.1234, "0.123"), (12.34, "12.3"), (123.4, "123"), (1234.5, "1,234"),
     (2e-7, "2e-07"), ("x", "x")],
)  # fmt: skip
def test_numbers_have_three_digits(value: results.Value, text: str) -> None:
    assert results.number(value) == text


def test_goal_of_a_value_without_reference() -> None:
    assert Comparison(what="x", measured=2.0, at_most=1.0).reached is False
    assert Comparison(what="x", measured=2.0).reached is None
