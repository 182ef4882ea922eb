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
                name = one.name.replace("_", "_<wbr>").replace(".", ".<wbr>")
                about = f"{one.duration}{', main' if one.main else ''}"
                if one.name not in measured:
                    about += ", no result yet"
                rows.append(
                    (
                        f"[{prose(one.question)}](#{_anchor(one)})",
                        f"<code>{name}</code>\n{about}",
                    )
                )
    return table(("question", "benchmark"), rows)


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
    origin = "; ".join(parts) + "."
    return f"{origin} {prose(result.copied)}." if result.copied else origin


def _comparisons(found: list[Comparison]) -> str:
    """Three columns, of which a phone shows the first two."""
    rows = []
    for one in found:
        what = prose(one.what)
        if goal := goal_text(one):
            what += f"\ngoal {goal}{': **missed**' if one.reached is False else ''}"
        rows.append((what, _outcome(one), prose(one.reference)))
    if not any(row[2] for row in rows):
        return table(("what", "result"), [row[:2] for row in rows])
    return table(("what", "result", "reference"), rows)


def _outcome(one: Comparison) -> str:
    """The ratio with both sides, or the value; the range of several rounds."""
    if one.measured is None:
        return f"not measured: {prose(one.missing)}"
    text = number(one.measured)
    if one.over is not None and one.ratio is not None:
        text = f"**{number(one.ratio)}** = {text} / {number(one.over)}"
    text = f"{text} {one.unit}".rstrip()
    if one.rounds:
        text += f"\n{number(min(one.rounds))} to {number(max(one.rounds))}"
    return text


def _table(one: Table) -> str:
    rows = []
    for row in one.rows:
        cells: list[Value] = list(row.cells)
        if row.missing:
            cells = [f"not measured: {row.missing}", *[""] * (len(one.columns) - 1)]
        name = prose(row.name) + (" (missed)" if row.reached is False else "")
        rows.append((name, *(prose(number(cell)) for cell in cells)))
    return table((one.first, *map(prose, one.columns)), rows)
