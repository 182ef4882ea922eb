"""The list of benchmarks, and tables of their stored results for each processor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.index import AREAS, BENCHMARKS, Benchmark
from benchmarks.results import Comparison, Result, Table, Value, goal_text, number, stored
from tools.docs.markdown import code, prose, table


def subjects() -> dict[str, Callable[[], str]]:
    """A block for the list, and one for each benchmark."""
    blocks: dict[str, Callable[[], str]] = {"benchmarks": render_index}
    return blocks | {f"benchmarks.{name}": partial(render, one) for name, one in BENCHMARKS.items()}


def render_index() -> str:
    """A table of the benchmarks by area."""
    measured = {result.benchmark for result in stored()}
    rows = []
    for area in AREAS:
        for one in BENCHMARKS.values():
            if one.area == area:
                where = f"[{prose(one.question)}](#{_anchor(one)})"
                how = code(one.name) + (" (main)" if one.main else "")
                if one.name not in measured:
                    how += "\nno stored result"
                rows.append((where, how, one.duration))
    return table(("question", "benchmark", "takes about"), rows)


def _anchor(one: Benchmark) -> str:
    return one.name.replace(".", "")


def render(one: Benchmark) -> str:
    """The question, what is compared, the command and the results of each machine."""
    parts = [
        f"### {one.name}",
        f"**{prose(one.question)}** {code(f'python -m {one.module}')} compares "
        f"{prose(one.compares)}. It takes about {one.duration}."
        + (f" It needs {one.needs}." if one.needs else ""),
    ]
    found = [result for result in stored() if result.benchmark == one.name]
    if not found:
        parts.append("There is no stored result.")
    return "\n\n".join([*parts, *(_result(result) for result in found)])


def _result(result: Result) -> str:
    parts = [f"**{prose(str(result.machine))}**"]
    if result.busy:
        parts[0] += f" - **busy machine**: {result.busy}"
    if result.comparisons:
        parts.append(_comparisons(result.comparisons))
    for one in result.tables:
        if one.title:
            parts.append(f"{prose(one.title)}:")
        parts.append(_table(one))
    parts += [prose(note) for note in result.notes]
    parts.append(f"<small>{_origin(result)}</small>")
    return "\n\n".join(parts)


def _origin(result: Result) -> str:
    """Date, command, versions and load, in one line."""
    parts = [result.time[:10], code(result.command)]
    parts.append(f"commit {result.commit}" if result.commit else "commit not recorded")
    if result.versions:
        parts.append(", ".join(f"{name} {text}" for name, text in result.versions.items()))
    if result.load is None:
        parts.append("load of the machine not recorded")
    else:
        parts.append(
            f"other programs used {result.load.cores_before:.2f} cores before and "
            f"{result.load.cores_during:.2f} during the run"
        )
    if result.copied:
        parts.append(prose(result.copied))
    return "; ".join(parts) + "."


def _comparisons(found: list[Comparison]) -> str:
    rows = []
    for one in found:
        if one.missing:
            rows.append((prose(one.what), f"not measured: {prose(one.missing)}", "", "", ""))
            continue
        assert one.measured is not None
        measured = f"{number(one.measured)} {one.unit}".strip()
        if len(one.rounds) > 1:
            measured += f"\n({number(min(one.rounds))} to {number(max(one.rounds))})"
        over = "" if one.over is None else f"{number(one.over)}: {prose(one.reference)}"
        ratio = "" if one.ratio is None else f"**{number(one.ratio)}**"
        goal = goal_text(one) + (", missed" if one.reached is False else "")
        rows.append((prose(one.what), measured, over, ratio, goal))
    header = ("what", "measured", "reference", "ratio", "goal")
    used = [0, *(column for column in range(1, 5) if any(row[column] for row in rows))]
    return table([header[column] for column in used], [[row[c] for c in used] for row in rows])


def _table(one: Table) -> str:
    rows = []
    for row in one.rows:
        cells: list[Value] = list(row.cells)
        if row.missing:
            cells = [f"not measured: {row.missing}", *[""] * (len(one.columns) - 1)]
        name = prose(row.name) + (" (missed)" if row.reached is False else "")
        rows.append((name, *(prose(number(cell)) for cell in cells)))
    return table((one.first, *map(prose, one.columns)), rows)
