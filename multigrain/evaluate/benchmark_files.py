"""The files that a retrieval benchmark leaves: figures, and one line a query."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from multigrain.evaluate.benchmark_result import BenchmarkResult
from multigrain.events.records import EvaluationRecord

HEADER = ("query", "group", "scored", "positives", "ap", "in_top4", "first", "ranks")


def write_benchmark(
    results: Path, record: EvaluationRecord, result: BenchmarkResult, gem_p: float
) -> None:
    """Writes ``<task>.json`` and ``<task>.csv``.

    Of each query: its file and group; whether it was scored (it and an image to find were
    readable); how many images it should find; average precision; how many of them are among the
    first four; the file ranked first; the ranks, from 0, of the first hundred that it should find.

    Raises:
        OSError: if they cannot be written.
    """
    benchmark = result.benchmark
    body = {
        "task": benchmark.task,
        "metrics": result.metrics,
        "note": benchmark.note,
        "whole_benchmark": benchmark.whole,
        "groups": benchmark.groups,
        "queries": len(benchmark.queries),
        "queries_scored": result.queries,
        "database": int((benchmark.database & result.present).sum()),
        "images": result.images,
        "unreadable": len(benchmark) - result.images,
        "ignored": benchmark.ignored,
        "transform": result.transform,
        # JSON has no infinity.
        "gem_p": gem_p if math.isfinite(gem_p) else "Infinity",
    }
    evaluation = {
        name: value
        for name, value in asdict(record).items()
        if name in ("step", "epoch", "seconds", "resolution")
    }
    text = json.dumps({**body, **evaluation}, indent=1)
    (results / f"{benchmark.task}.json").write_text(text + "\n")
    with (results / f"{benchmark.task}.csv").open(
        "w", newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        csv.writer(file).writerows(_rows(result))


def _rows(result: BenchmarkResult) -> Iterable[list[object]]:
    yield list(HEADER)
    folder, ranking = result.benchmark.folder, result.ranking
    for number, query in enumerate(result.benchmark.queries.tolist()):
        row: list[object] = [folder.paths[query], folder.classes[folder.labels[query]]]
        if not ranking.scored[number]:
            yield [*row, 0, "", "", "", "", ""]
            continue
        ranks = ranking.ranks[number]
        yield [
            *row,
            1,
            int(ranking.positives[number]),
            f"{ranking.precision[number]:.6f}",
            int(ranking.in_top4[number]),
            folder.paths[int(ranking.first[number])],
            " ".join(str(rank) for rank in ranks[ranks >= 0].tolist()),
        ]
